"""The page's style sheet: one set of colours for light, one for dark, nothing loaded from anywhere."""

STYLE = """
:root{color-scheme:light dark;--page:#f7f6f2;--card:#fffefb;--ink:#23262b;--soft:#62666e;--rule:#e3e0d8;
--grid:#ece9e1;--good:#2f7a57;--good-bg:#e6f1ea;--bad:#a8462f;--bad-bg:#f8e9e3;--flat:#5a6472;
--flat-bg:#eceef0;
--t0:#2c6e8f;--t1:#a9761b;--t2:#8a4f7d;--t3:#4f7d46;--t4:#b0563c;--t5:#5b62a8;--bar:#7fa9bd;--short:#cf8a66;
--score:#eef3f3;--best:#1f5673}
@media (prefers-color-scheme:dark){:root{--page:#16181b;--card:#1d2024;--ink:#e7e4dd;--soft:#a2a6ad;
--rule:#33373d;
--grid:#2a2e33;--good:#86cfa8;--good-bg:#1d3128;--bad:#eda58d;--bad-bg:#3b2620;--flat:#b3bbc6;
--flat-bg:#272b31;
--t0:#7cb9d6;--t1:#dcae5f;--t2:#cf9bc3;--t3:#9cc992;--t4:#e79a80;--t5:#a6acec;--bar:#4d7e96;--short:#b9714d;
--score:#232b30;--best:#a9d6ec}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif}
main,body>header,body>footer{max-width:1120px;margin:0 auto;padding:0 24px}
body>header{padding-top:44px}
h1{font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.01em;margin:0}
h2{font-size:21px;font-weight:650;margin:56px 0 4px;letter-spacing:-.005em}
h3{font-size:15px;font-weight:650;margin:0 0 4px}
h4{font-size:15px;font-weight:650;margin:0}
p{margin:6px 0;max-width:46em}
.when,.lead,figcaption,.missing,caption,footer,.note{color:var(--soft)}
.when{margin:6px 0 0;font-size:14px}
.lead{margin:0 0 18px}
.missing{font-style:italic}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin:22px 0 0;font-size:14px}
a{color:var(--t0);text-underline-offset:3px}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--t0);outline-offset:3px}
.verdict{margin:24px 0 0;padding:26px 30px 24px;border-radius:14px;border-left:6px solid var(--tone);
background:var(--tone-bg)}
.verdict .state{color:var(--tone);font-size:13px;font-weight:700;letter-spacing:.08em;
text-transform:uppercase;margin:0}
.verdict .text{font-size:25px;line-height:1.3;font-weight:600;margin:6px 0 0;max-width:34em;
letter-spacing:-.005em}
.verdict .action{margin:12px 0 0}
.good{--tone:var(--good);--tone-bg:var(--good-bg)}
.bad{--tone:var(--bad);--tone-bg:var(--bad-bg)}
.flat{--tone:var(--flat);--tone-bg:var(--flat-bg)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0 0;
padding:0;
list-style:none}
.tiles li{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 18px 12px}
.tiles b{display:block;font-size:23px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:13.5px}
dl{margin:0;columns:2;column-gap:44px;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:12px 22px}
dl>div{display:grid;grid-template-columns:9.5em 1fr;gap:14px;padding:6px 0;break-inside:avoid}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:12px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:12px 20px 4px;font-size:14px}
th,td{text-align:right;padding:9px 20px;border-top:1px solid var(--rule);font-weight:400;white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-size:13.5px;vertical-align:bottom}
th:first-child{text-align:left}
.text th{text-align:left}
.text td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.scores tbody tr:last-child th,.scores tbody tr:last-child td{font-weight:600}
.scores tbody tr:last-child{background:var(--score)}
.heads{margin-top:18px}
.scores .best{color:var(--best);font-weight:700}
.note{font-size:14px;margin:8px 0 0;max-width:64em}
.note:first-of-type{margin-top:14px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px;
align-items:stretch}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:16px 20px 12px;
min-width:0}
figcaption{font-size:14px;line-height:1.5;margin-top:4px}
figcaption p{margin:4px 0}
.wide{grid-column:1/-1}
.keys{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13.5px;color:var(--soft);min-height:22px}
.keys b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.swatch{display:inline-block;width:18px;border-top:2.5px solid;vertical-align:middle;margin-right:5px}
.swatch.dashed{border-top-style:dashed;border-top-width:2px}
.tone-0{color:var(--t0)}.tone-1{color:var(--t1)}.tone-2{color:var(--t2)}
.tone-3{color:var(--t3)}.tone-4{color:var(--t4)}.tone-5{color:var(--t5)}
.level-bound{color:var(--t4)}.level-share{color:var(--soft)}
svg{display:block;width:100%;height:auto;margin-top:6px;overflow:visible}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
.grid{stroke:var(--grid)}.tick{stroke:var(--rule)}
.line path{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line circle{fill:currentColor}
.dashed path{stroke-width:1.6;stroke-dasharray:5 4;stroke-linecap:butt}
.line .target{fill:transparent}
.line .target:hover{fill:currentColor;fill-opacity:.3}
.bars rect{fill:var(--bar)}.bars .short{fill:var(--short)}.bars path{fill:var(--bar);
shape-rendering:crispEdges}
.level{stroke-width:1.6;stroke-dasharray:5 4}
.level.bound{stroke:var(--t4)}.level.share{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:2 3}
details{margin:14px 0 0}
summary{cursor:pointer;color:var(--t0);padding:6px 0;font-size:15px}
section section{margin-top:26px}
.cluster{display:grid;grid-template-columns:120px 1fr 1fr;gap:10px 26px;align-items:start;padding:16px 0 12px;
border-top:1px solid var(--rule)}
.cluster>header span{display:block;color:var(--soft);font-size:13.5px;overflow-wrap:anywhere}
.strip{min-width:0}
.strip.all{grid-column:2}
.strip img{display:block;height:auto;
-webkit-mask:linear-gradient(90deg,#000 var(--tile),#0000 0) 0 0/calc(100%/var(--n)) 100%;
mask:linear-gradient(90deg,#000 var(--tile),#0000 0) 0 0/calc(100%/var(--n)) 100%}
.strip .exact{image-rendering:pixelated}
.kind{color:var(--soft);font-size:12.5px;margin-bottom:4px}
.cells{display:grid;grid-template-columns:repeat(8,1fr)}
.cells span{color:var(--soft);font-size:11.5px;text-align:center;font-variant-numeric:tabular-nums;
cursor:default}
footer{font-size:13.5px;margin-top:64px!important;padding-bottom:48px!important}
@media (max-width:760px){dl{columns:1}.cluster{grid-template-columns:1fr}.strip.all{grid-column:1}
.cluster>header{display:flex;gap:12px;align-items:baseline}.verdict .text{font-size:21px}
main,body>header,body>footer{padding-left:16px;padding-right:16px}}
@media print{body{background:#fff}figure,.cluster,.verdict{break-inside:avoid}nav{display:none}}
"""
