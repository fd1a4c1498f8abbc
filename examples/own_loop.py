"""Online constrained k-means in your own loop: plain PyTorch, without coke's trainer."""

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from coke import LabelMemory, OnlineConstrainedKMeans, auto_dual_lr
from coke.backbones import Conv5
from coke.images.textures import textures
from coke.method.network import Network
from coke.method.objective import Objective

N, BATCH, K, DIM, RATIO = 2000, 128, 20, 64, 0.4  # every cluster is to hold RATIO * N / K = 40 images

torch.manual_seed(0)
images, _ = textures(N)
augment = v2.Compose([v2.RandomResizedCrop(24, (0.5, 1)), v2.RandomHorizontalFlip(), v2.RandomInvert()])
network = Network(Conv5(width=16), n_features=128, dim=DIM)  # backbone, projector, predictor
clustering = OnlineConstrainedKMeans(K, DIM, RATIO, auto_dual_lr(N, BATCH, K, RATIO))
memory, objective = LabelMemory(N, K), Objective(temperature=0.1)
optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

for epoch in range(5):
    losses = []
    for ids in DataLoader(range(N), BATCH, shuffle=True):
        output = network(torch.stack([augment(images[i]) for i in ids]) / 127.5 - 1)
        target = objective.target(*memory.read_average(ids), averaging=False)  # last epoch's labels
        features = output.projection.detach()
        labels = clustering.assign(features)  # under the state from before this batch
        if epoch > 0:  # the first pass only clusters: there are no labels to learn from yet
            loss = objective([output], [], target, [clustering.frozen_centers]).value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        clustering.update(features, labels)
        memory.write(ids, labels[:, None])  # one column per head
    sizes = clustering.counts.int().tolist()
    print(f"epoch {epoch}: loss {torch.tensor(losses).mean():.3f}, sizes {sizes}")
    clustering.end_epoch()
