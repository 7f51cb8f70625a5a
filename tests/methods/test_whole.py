"""Every method from setup to its last step against its paper, read off in loops: nine steps, of which each follows from
all that was before, so that a wrong image, option, memory or gradient anywhere is seen."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from sklearn.decomposition import PCA
from torch import Generator, Tensor

from src.methods.base import TrainingSet
from src.methods.byol import BYOL
from src.methods.deepcluster import DeepCluster
from src.methods.exemplar import Exemplar
from src.methods.invariant_spreading import InvariantSpreading
from src.methods.mom import MiningOnManifolds
from src.methods.nce import NCE
from src.methods.npsoftmax import NPSoftmax
from src.methods.simclr import SimCLR
from src.methods.stml import STML
from src.methods.supervised import Supervised
from src.methods.triplet import Triplet
from src.methods.untrained import Untrained
from src.vectors.kmeans import kmeans
from tests.methods.reference import self_taught
from tests.methods.tiny import BATCH, DIM, IMAGES, Weights
from tests.methods.transcription import Look, Transcription, mean, unit
from tests.methods.whole import assert_agree, follow

LABELS = torch.tensor([7, 2, 2, 9, 7, 9, 2, 4, 9, 4, 7, 4])


@pytest.fixture(autouse=True)
def _one_thread(_two_threads: None) -> None:
    """Tensors this small lose more to waiting for each other than they gain."""
    torch.set_num_threads(1)


def partner_of(row: int, rows: int) -> int:
    """The other view of the same place."""
    return row + rows // 2 if row < rows // 2 else row - rows // 2


class ExemplarEquation(Transcription):
    """Equation (1) of Ye et al., with a temperature."""

    views = 1

    def __init__(self, start: Weights, temperature: float) -> None:
        self.weights = {"weights": start["weights"].clone()}
        self.temperature = temperature

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        w, chances = self.weights["weights"], []
        for f, i in zip(z, index, strict=True):
            likeness = (w @ f / self.temperature).exp()
            chances.append(likeness[i] / likeness.sum())
        return {"loss": -mean([chance.log() for chance in chances])}


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_exemplar(temperature: float) -> None:
    assert_agree(lambda: Exemplar(temperature), lambda start: ExemplarEquation(start, temperature))


class Memory:
    """Section 3.1 of Wu et al.: v_i is set to f_i, or moved towards it; of unit length."""

    def __init__(self, start: Weights, momentum: float) -> None:
        self.entries = [row.clone() for row in start["bank.memory"]]
        self.seen: set[int] = set()
        self.momentum = momentum

    def update(self, z: Tensor, index: list[int]) -> None:
        for f, i in zip(z, index, strict=True):
            self.entries[i] = unit(self.momentum * self.entries[i] + (1 - self.momentum) * f)
            self.seen.add(i)

    def state(self) -> Weights:
        seen = torch.tensor([i in self.seen for i in range(IMAGES)])
        return {"bank.memory": torch.stack(self.entries), "bank.seen": seen}


class NonParametricSoftmax(Transcription):
    """Equation (2): the memory in place of the weights."""

    views = 1

    def __init__(self, start: Weights, temperature: float, momentum: float) -> None:
        super().__init__()
        self.memory, self.temperature = Memory(start, momentum), temperature

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        chances = []
        for f, i in zip(z, index, strict=True):
            likeness = (torch.stack(self.memory.entries) @ f / self.temperature).exp()
            chances.append(likeness[i] / likeness.sum())
        return {"loss": -mean([chance.log() for chance in chances])}

    def remember(self, z: Tensor, index: list[int]) -> None:
        self.memory.update(z, index)

    def state(self) -> Weights:
        return self.memory.state()


@pytest.mark.parametrize("momentum", [0, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_npsoftmax(temperature: float, momentum: float) -> None:
    assert_agree(
        lambda: NPSoftmax(temperature, momentum), lambda start: NonParametricSoftmax(start, temperature, momentum)
    )


class NoiseContrast(Transcription):
    """Equations (4) to (9) of Wu et al.: Z from the noise of the first batch, proximal term where there is a memory."""

    views = 1

    def __init__(self, start: Weights, temperature: float, noise: int, momentum: float, proximal: float) -> None:
        super().__init__()
        self.memory, self.temperature = Memory(start, momentum), temperature
        self.noise, self.proximal, self.z = noise, proximal, math.nan

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        drawn = torch.randint(IMAGES, (len(z), self.noise)).tolist()
        v = self.memory.entries
        if math.isnan(self.z):
            likeness = [(v[k] @ f / self.temperature).exp() for f, row in zip(z, drawn, strict=True) for k in row]
            self.z = IMAGES * mean(likeness).item()

        def h(f: Tensor, i: int) -> Tensor:
            p = (v[i] @ f / self.temperature).exp() / self.z
            return p / (p + self.noise / IMAGES)

        contrast, proximal = [], []
        for f, i, row in zip(z, index, drawn, strict=True):
            contrast.append(-h(f, i).log() - sum((1 - h(f, k)).log() for k in row))
            proximal.append((f - v[i]).square().sum() if i in self.memory.seen else f.new_zeros(()))
        loss = mean(contrast) + self.proximal * mean(proximal)
        return {"loss": loss, "contrast": mean(contrast), "proximal": mean(proximal)}

    def remember(self, z: Tensor, index: list[int]) -> None:
        self.memory.update(z, index)

    def state(self) -> Weights:
        return self.memory.state() | {"log_z": torch.tensor(self.z, dtype=torch.float64).log()}


@pytest.mark.parametrize(
    ("temperature", "noise", "momentum", "proximal"),
    [(0.1, 16, 0.5, 0), (0.5, 5, 0, 10), (0.5, 16, 0.9, 2), (0.1, 40, 0.5, 0.5)],
)
def test_nce(temperature: float, noise: int, momentum: float, proximal: float) -> None:
    options = (temperature, noise, momentum, proximal)
    run = assert_agree(lambda: NCE(*options), lambda start: NoiseContrast(start, *options), lr=0.01)
    assert run.steps[0].terms["proximal"] == 0
    assert run.steps[-1].terms["proximal"] > 0.01, "it has a part in this"


class NTXent(Transcription):
    """Equation (1) of Chen et al., over both views."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        rows, each = len(z), []
        for i in range(rows):
            likeness = (z @ z[i] / self.temperature).exp()
            each.append(-(likeness[partner_of(i, rows)] / sum(likeness[k] for k in range(rows) if k != i)).log())
        return {"loss": mean(each)}


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr(temperature: float) -> None:
    assert_agree(lambda: SimCLR(temperature), lambda start: NTXent(temperature))


class Triplets(Transcription):
    """Hermans et al.: the nearest negative in the batch (equation 5), or a random one."""

    def __init__(self, margin: float, negatives: str) -> None:
        super().__init__()
        self.margin, self.negatives = margin, negatives
        self.active = 0

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        rows, images, each = len(z), len(index), []
        shift, view = torch.randint(1, images, (rows,)).tolist(), torch.randint(2, (rows,)).tolist()
        for a in range(rows):
            others = [j for j in range(rows) if j % images != a % images]
            nearest = min(others, key=lambda j: (z[a] - z[j]).norm().item())
            n = nearest if self.negatives == "hard" else (a + shift[a]) % images + view[a] * images
            violation = self.margin + (z[a] - z[partner_of(a, rows)]).norm() - (z[a] - z[n]).norm()
            self.active += violation.item() > 0
            each.append(violation.clamp(min=0))
        return {"loss": mean(each)}


@pytest.mark.parametrize("margin", [0.2, 0.5])
@pytest.mark.parametrize("negatives", ["random", "hard"])
def test_triplet(margin: float, negatives: Any) -> None:
    written: list[Triplets] = []

    def transcription(start: Weights) -> Triplets:
        written.append(Triplets(margin, negatives))
        return written[-1]

    assert_agree(lambda: Triplet(margin, negatives), transcription)
    assert 9 < written[0].active < 9 * 8, "some triplets are easy, and some are not"


class SupervisedContrast(Transcription):
    """Equation (2) of Khosla et al., NeurIPS 2020; every view has a positive, the other view."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        labels, each = [int(LABELS[i]) for i in index] * 2, []
        for i in range(len(z)):
            likeness, others = (z @ z[i] / self.temperature).exp(), [k for k in range(len(z)) if k != i]
            total = sum(likeness[k] for k in others)
            each.append(-mean([(likeness[k] / total).log() for k in others if labels[k] == labels[i]]))
        return {"loss": mean(each)}


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_supervised(temperature: float) -> None:
    assert_agree(
        lambda: Supervised("SupConLoss", {"temperature": temperature}, None, {}),
        lambda start: SupervisedContrast(temperature),
        LABELS,
    )


class ProxyNCA(Transcription):
    """Movshovitz-Attias et al., ICCV 2017, as a softmax over the proxies of all classes."""

    def __init__(self, start: Weights) -> None:
        self.weights = {"loss.proxies": start["loss.proxies"].clone()}
        self.classes = sorted(set(LABELS.tolist()))

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        each = []
        for x, i in zip(z, index * 2, strict=True):
            near = [(-(x - unit(proxy)).square().sum()).exp() for proxy in self.weights["loss.proxies"]]
            each.append(-(near[self.classes.index(int(LABELS[i]))] / sum(near)).log())
        return {"loss": mean(each)}


def test_supervised_with_weights_of_its_own() -> None:
    run = assert_agree(lambda: Supervised("ProxyNCALoss", {}, None, {}), ProxyNCA, LABELS)
    assert (run.steps[-1].values["loss.proxies"] - run.start["loss.proxies"]).abs().min() > 0, "every proxy learns"


class MinedTriplets(Transcription):
    """The package's own, asked for by hand."""

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        labels = torch.tensor([int(LABELS[i]) for i in index] * 2)
        mined = miners.TripletMarginMiner(margin=0.8, type_of_triplets="semihard")(z, labels)
        return {"loss": losses.TripletMarginLoss(margin=0.9)(z, labels, mined)}


def test_supervised_with_a_miner() -> None:
    mining = {"margin": 0.8, "type_of_triplets": "semihard"}
    run = assert_agree(
        lambda: Supervised("TripletMarginLoss", {"margin": 0.9}, "TripletMarginMiner", mining),
        lambda start: MinedTriplets(),
        LABELS,
    )
    assert all(step.terms["loss"] > 0 for step in run.steps), "it finds some in every batch"


def test_untrained() -> None:
    """It alone says that there is nothing to train, and has nothing that could be."""
    method = Untrained()
    method.setup(TrainingSet(IMAGES, DIM, pretrained=False, labels=None, num_features=8))
    assert not method.trains
    assert not method.state_dict()
    with pytest.raises(NotImplementedError):
        follow(Untrained)
    others = (DeepCluster, Exemplar, InvariantSpreading, MiningOnManifolds, NCE, NPSoftmax, SimCLR, Supervised, Triplet)
    assert all(other.trains for other in (*others, BYOL, STML))
    assert [other for other in (*others, BYOL, STML) if other.supervised] == [Supervised]


class InvariantSpreadingEquations(Transcription):
    """Equations (3) to (7) of Ye et al., each of the 2N views an anchor; Table 8; the coin of the published program."""

    def __init__(
        self, temperature: float, negatives: str, stop_gradient: bool, fraction: float, positives: str
    ) -> None:
        super().__init__()
        self.temperature, self.negatives, self.stop_gradient = temperature, negatives, stop_gradient
        self.fraction, self.positives = fraction, positives
        self.nearest: list[list[int]] = []

    def begin(self, look: Look, generator: Generator) -> list[list[int]] | None:
        if self.positives == "self":
            return None
        features, embeddings = look()
        self.nearest.append(nearest([unit(row) for row in features]))
        assert self.nearest[-1] != nearest(list(embeddings)), "the two spaces are told apart"
        coins = torch.rand(IMAGES, generator=generator).tolist()
        return [[i, self.nearest[-1][i] if coins[i] < 0.5 else i] for i in range(IMAGES)]

    def choose(self, similarity: Mapping[int, float]) -> tuple[list[int], float]:
        """Of the negatives' similarities those that count, and what their sum weighs."""
        ranked = sorted(similarity, key=lambda j: similarity[j], reverse=self.negatives != "easy")
        if self.negatives == "all":
            return ranked, 1
        if self.negatives == "hard_published":  # BatchAverage.py:71-101 of the first published program
            return ranked[: int(self.fraction * (len(ranked) + 2))], self.fraction
        return ranked[: round(self.fraction * len(ranked))], 1

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        rows, positive, negative = len(z), z.new_zeros(()), z.new_zeros(())
        for i in range(rows):
            operands = z.detach() if self.stop_gradient else z
            e, p = (operands @ z[i] / self.temperature).exp(), partner_of(i, rows)
            kept, weight = self.choose({j: likeness for j, likeness in enumerate(e.tolist()) if j not in (i, p)})
            total = e[p] + sum(e[j] for j in kept)
            positive = positive - (e[p] / total).log()
            negative = negative - weight * sum((1 - e[j] / total).log() for j in kept)
            over = len(kept) + 1 if self.negatives == "hard_published" else rows
        return {"loss": (positive + negative) / over, "positive": positive / over, "negative": negative / over}


def nearest(points: list[Tensor]) -> list[int]:
    """The other point with the largest product with each."""
    numbers = range(len(points))
    return [max((j for j in numbers if j != i), key=lambda j: (points[i] @ points[j]).item()) for i in numbers]


KEPT = [("all", 0.5), *itertools.product(["hard", "easy", "hard_published"], [0.5, 0.25])]


@pytest.mark.parametrize("positives", ["self", "nearest"])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(("negatives", "fraction"), KEPT)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_invariant_spreading(
    temperature: float, negatives: str, fraction: float, stop_gradient: bool, positives: str
) -> None:
    options: tuple[Any, ...] = (temperature, negatives, stop_gradient, fraction, positives)
    written: list[InvariantSpreadingEquations] = []

    def transcription(start: Weights) -> InvariantSpreadingEquations:
        written.append(InvariantSpreadingEquations(*options))
        return written[-1]

    run = assert_agree(lambda: InvariantSpreading(*options), transcription)
    if positives == "nearest":
        first, second, _ = written[0].nearest
        assert first != second, "neighbours change from epoch to epoch"
        tossed = [row[0] != row[1] for epoch in run.companions if epoch for row in epoch]
        assert 0 < sum(tossed) < len(tossed)


class DeepClusterProgram(Transcription):
    """deepcluster's main.py:178-225 and clustering.py, but for the seeds of k-means, which is tested apart."""

    views = 1

    def __init__(self, clusters: int, pca: int, iterations: int, raw: bool, linear: bool, temperature: float) -> None:
        super().__init__()
        self.clusters, self.pca, self.iterations, self.raw = clusters, pca, iterations, raw
        self.unit_norm, self.temperature = not linear, temperature
        self.options = {"lr": 0.05, "weight_decay": 1e-5, "momentum": 0} if linear else {}
        self.weights = {"weights": torch.zeros(clusters, DIM, dtype=torch.float64)}
        if linear:
            self.weights["biases"] = torch.zeros(clusters, dtype=torch.float64)

    def begin(self, look: Look, generator: Generator) -> list[list[int]]:
        features, _ = look()
        points = features if self.raw else torch.stack([unit(row) for row in features])
        whitened = torch.from_numpy(PCA(self.pca, whiten=True, svd_solver="full").fit_transform(points.numpy()))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        points = torch.stack([unit(row) for row in whitened])
        self.labels, _ = kmeans(points, self.clusters, seed, iterations=self.iterations, tolerance=0)
        drawn = torch.randn(self.clusters, DIM, generator=generator).double()
        if self.unit_norm:
            self.weights = {"weights": torch.stack([unit(row) for row in drawn])}
        else:
            self.weights = {"weights": 0.01 * drawn, "biases": torch.zeros(self.clusters, dtype=torch.float64)}
        return [[image] for image in self.alike(generator)]

    def alike(self, generator: Generator) -> list[int]:
        """As many images of every cluster, each of a cluster's before any of them again."""
        members = [[i for i in range(IMAGES) if self.labels[i] == cluster] for cluster in range(self.clusters)]
        share, drawn = math.ceil(IMAGES / self.clusters), []
        for images in members:
            turns = math.ceil(share / len(images))
            rounds = [torch.randperm(len(images), generator=generator).tolist() for _ in range(turns)]
            drawn += [images[i] for order in rounds for i in order][:share]
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()][:IMAGES]

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        losses = []
        for f, i in zip(z, index, strict=True):
            if self.unit_norm:
                logits = torch.stack([unit(w) @ f / self.temperature for w in self.weights["weights"]])
            else:
                logits = self.weights["weights"] @ f + self.weights["biases"]
            losses.append(logits.exp().sum().log() - logits[self.labels[i]])
        return {"loss": mean(losses)}

    def state(self) -> Weights:
        return {"labels": self.labels}


@pytest.mark.parametrize("features", ["raw", "pooled"])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize(("clusters", "pca", "iterations", "temperature"), [(3, 4, 20, 0.1), (5, 2, 1, 0.5)])
def test_deepcluster(
    clusters: int, pca: int, iterations: int, temperature: float, classifier: Any, features: Any
) -> None:
    linear = classifier == "linear"
    own = (0.05, 1e-5) if linear else (None, None)
    written: list[DeepClusterProgram] = []

    def transcription(start: Weights) -> DeepClusterProgram:
        written.append(DeepClusterProgram(clusters, pca, iterations, features == "raw", linear, temperature))
        return written[-1]

    assert_agree(
        lambda: DeepCluster(clusters, pca, iterations, features, classifier, temperature, *own), transcription, lr=0.2
    )
    assert len(set(written[0].labels.tolist())) == clusters


class MiningProgram(Transcription):
    """mom's mat/mom_CUB.m, posmine.m, negmine.m and py/cub2011.py, py/model.py; modes and mining anew by the paper."""

    views = 3

    def __init__(self, margin: float, k: int, negative_k: int, graph_k: int, power: float, **options: Any) -> None:
        super().__init__()
        self.margin, self.k, self.negative_k, self.graph_k, self.power = margin, k, negative_k, graph_k, power
        self.options_of_method = options
        self.pools: dict[int, tuple[list[int], list[float], list[int]]] = {}
        self.weight = torch.ones(IMAGES, dtype=torch.float64)

    def begin(self, look: Look, generator: Generator) -> list[list[int]]:
        if not self.pools or self.options_of_method["remine"] or self.options_of_method["hardest"]:
            features, embeddings = look()
        if not self.pools or self.options_of_method["remine"]:
            self.left_out = 0
            self.mine([unit(row) for row in features])
        anchors = list(self.pools)
        turns = [torch.randperm(len(anchors), generator=generator).tolist() for _ in range(-(-IMAGES // len(anchors)))]
        rows = [row for turn in turns for row in turn][:IMAGES]
        tickets = torch.rand(len(anchors), self.k, generator=generator)
        positives: dict[int, int] = {}
        for ticket, anchor in zip(tickets.tolist(), anchors, strict=True):
            ranked, weights, _ = self.pools[anchor]
            column = max((c for c, image in enumerate(ranked) if image >= 0), key=lambda c: ticket[c])
            positives[anchor], self.weight[anchor] = ranked[column], weights[column]
        tickets, triplets = torch.rand(IMAGES, self.negative_k, generator=generator), []
        for ticket, row in zip(tickets.tolist(), rows, strict=True):
            anchor = anchors[row]
            near = self.pools[anchor][2]
            pool = [image for image in near if image >= 0]
            if self.options_of_method["hardest"]:
                pool.sort(key=lambda i: (embeddings[anchor] - embeddings[i]).square().sum().item())
                pool = pool[: self.options_of_method["hardest"]]
            column = max((c for c, image in enumerate(near) if image in pool), key=lambda c: ticket[c])
            triplets.append([anchor, positives[anchor], near[column]])
        return triplets

    def mine(self, x: list[Tensor]) -> None:
        """Per anchor, in the order of their ranks and -1 for those that are not hard: positives, weights, negatives."""
        numbers, self.pools = range(IMAGES), {}
        alike = [[(x[i] @ x[j]).item() for j in numbers] for i in numbers]
        ranks = [sorted((j for j in numbers if j != i), key=lambda j: -alike[i][j]) for i in numbers]
        graph = torch.zeros(IMAGES, IMAGES, dtype=torch.float64)
        for i in numbers:
            for j in ranks[i][: self.graph_k]:
                if i in ranks[j][: self.graph_k]:
                    graph[i, j] = max(0.0, alike[i][j]) ** self.power
        degree = graph.sum(1)
        scale = torch.diag(torch.where(degree > 0, degree.clamp(min=1e-12) ** -0.5, 0))
        solution = torch.linalg.inv(torch.eye(IMAGES, dtype=torch.float64) - 0.9 * scale @ graph @ scale)
        for i in numbers:
            if self.options_of_method["anchors"] == "modes" and not (
                degree[i] > 0 and all(degree[i] >= degree[j] for j in numbers if graph[i, j] > 0)
            ):
                continue
            reach = [j for j in numbers if j != i and solution[i, j] > 1e-12]
            along = sorted(reach, key=lambda j: -solution[i, j].item())
            positive = [j if j not in ranks[i][: self.k] else -1 for j in along[: self.k]]
            negative = [j if j not in along[: self.negative_k] else -1 for j in ranks[i][: self.negative_k]]
            for j in [j for j in negative if j >= 0][self.options_of_method["pool"] or IMAGES :]:
                negative[negative.index(j)] = -1  # negmine.m: of those the `maxpoolsize` nearest
                self.left_out += 1
            if max(positive, default=-1) >= 0 and max(negative) >= 0:
                self.pools[i] = positive, [solution[i, j].item() for j in along[: self.k]], negative

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        losses: list[Tensor] = []
        places = len(index)
        for row, anchor in enumerate(index):
            a, p, n = z[row], z[row + places], z[row + 2 * places]
            near, far = (a - p).square().sum(), (a - n).square().sum()
            if self.options_of_method["loss"] == "triplet":
                loss = (self.margin + near - far).clamp(min=0)
            else:
                loss = near + (self.margin - far.sqrt()).clamp(min=0) ** 2
            losses.append(loss * (self.weight[anchor] if self.options_of_method["weighted"] else 1))
        return {"loss": mean(losses)}

    def state(self) -> Weights:
        return {"weight": self.weight}


PUBLISHED: dict[str, Any] = {
    "loss": "triplet",
    "anchors": "all",
    "pool": 3,
    "weighted": True,
    "hardest": 2,
    "remine": False,
}


@pytest.mark.parametrize(
    ("changes", "margin", "power"),
    [
        ({}, 0.5, 3),
        ({"hardest": None}, 0.8, 1),
        ({"hardest": None, "pool": 1}, 0.8, 3),
        ({"weighted": False, "remine": True, "pool": None}, 0.5, 3),
        ({"loss": "contrastive", "anchors": "modes", "hardest": None, "remine": True}, 1.3, 3),
    ],
)
def test_mom(changes: dict[str, Any], margin: float, power: float) -> None:
    options = PUBLISHED | changes
    counts: dict[str, Any] = {"k": 4, "negative_k": 5, "graph_k": 2}
    written: list[MiningProgram] = []

    def transcription(start: Weights) -> MiningProgram:
        written.append(MiningProgram(margin, **counts, power=power, **options))
        return written[-1]

    def method() -> MiningOnManifolds:
        return MiningOnManifolds(margin=margin, **counts, power=power, alpha=0.9, **options)

    assert_agree(method, transcription, lr=0.001)  # small, so that mining anew still finds pairs
    assert len(written[0].pools) >= (2 if options["anchors"] == "modes" else 5), "there is something to draw from"
    assert (written[0].left_out > 0) == (options["pool"] == 1)


class SelfTaught(Transcription):
    """Kim et al.: section 3 and the published program, but that the teacher begins as a copy and follows afterwards."""

    unit_norm = False

    def __init__(self, start: Weights, sigma: float, delta: float, neighbors: int, momentum: float) -> None:
        super().__init__()
        self.weights = {name: start[name].clone() for name in ("g.weight", "g.bias")}
        self.teacher = {name: value.clone() for name, value in self.weights.items()}
        self.sigma, self.delta, self.neighbors, self.decay, self.kept = sigma, delta, neighbors, momentum, momentum

    def order(self, look: Look, generator: Generator) -> list[list[int]]:
        features, _ = look()
        g = [self.weights["g.weight"] @ x + self.weights["g.bias"] for x in features]
        batches = []
        for _ in range(IMAGES // BATCH):
            queries = torch.randperm(IMAGES, generator=generator).tolist()[: BATCH // self.neighbors]
            near = [sorted(range(IMAGES), key=lambda i: (g[q] - g[i]).norm().item())[: self.neighbors] for q in queries]
            batches.append([i for row in near for i in row])
        return batches

    def hear(self, features: Tensor, taught: tuple[Tensor, Tensor]) -> None:
        self.g = torch.stack([self.weights["g.weight"] @ x + self.weights["g.bias"] for x in features])
        self.t = torch.stack([self.teacher["g.weight"] @ x + self.teacher["g.bias"] for x in taught[0]])

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        assert self.t.grad_fn is None
        return self_taught(z, self.g, self.t, index * 2, sigma=self.sigma, delta=self.delta, k=2 * self.neighbors)

    def remember(self, z: Tensor, index: list[int]) -> None:
        for name, value in self.weights.items():
            self.teacher[name] = self.kept * self.teacher[name] + (1 - self.kept) * value

    def state(self) -> Weights:
        return {"teacher_weight": self.teacher["g.weight"], "teacher_bias": self.teacher["g.bias"]}


@pytest.mark.parametrize(
    ("sigma", "delta", "neighbors", "momentum", "g_dim"), [(3, 1, 2, 0.9, 8), (0.5, 0.7, 2, 0.5, 5), (1, 1.2, 4, 0, 20)]
)
def test_stml(sigma: float, delta: float, neighbors: int, momentum: float, g_dim: int) -> None:
    options = (sigma, delta, neighbors, momentum)
    run = assert_agree(lambda: STML(*options, g_dim), lambda start: SelfTaught(start, *options), lr=0.05)
    assert run.start["g.weight"].shape == (g_dim, 8)
    twice = [len(set(batch)) < BATCH for epoch in run.orders if epoch for batch in epoch]
    assert any(twice) == (neighbors < BATCH), "an image stands twice in a batch, beside two others"
    first, last = run.steps[0].values, run.steps[-1].values
    assert (first["teacher_weight"] - last["teacher_weight"]).abs().max() > 1e-3
    assert all(step.terms["distillation"] > 1e-5 for step in run.steps)


class BootstrapYourOwn(Transcription):
    """Equation (2) of Grill et al., both ways, with the predictor of their appendix J, a unit at a time."""

    unit_norm = False

    def __init__(self, start: Weights, momentum: float) -> None:
        super().__init__()
        self.weights = {name: start[name].clone() for name in start if "running" not in name and "tracked" not in name}
        self.mean, self.spread, self.count = start["predictor.1.running_mean"], start["predictor.1.running_var"], 0
        self.decay = momentum

    def hear(self, features: Tensor, taught: tuple[Tensor, Tensor]) -> None:
        self.target = [unit(row) for row in taught[1]]

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        w, hidden, means, spreads = self.weights, [], [], []
        for unit_in, scale, shift in zip(
            w["predictor.0.weight"], w["predictor.1.weight"], w["predictor.1.bias"], strict=True
        ):
            values = [unit_in @ row for row in z]
            middle = mean(values)
            spread = mean([(value - middle) ** 2 for value in values])
            hidden.append([((v - middle) / (spread + 1e-5).sqrt() * scale + shift).clamp(min=0) for v in values])
            means.append(middle.detach())
            spreads.append(spread.detach() * len(z) / (len(z) - 1))
        self.mean = 0.9 * self.mean + 0.1 * torch.stack(means)
        self.spread = 0.9 * self.spread + 0.1 * torch.stack(spreads)
        self.count += 1
        q = [unit(w["predictor.3.weight"] @ torch.stack(row)) for row in zip(*hidden, strict=True)]
        half, each = len(index), []
        for i in range(half):
            one, other = q[i] @ self.target[i + half], q[i + half] @ self.target[i]
            each.append((2 - 2 * one) + (2 - 2 * other))
        return {"loss": mean(each)}

    def state(self) -> Weights:
        return {
            "predictor.1.running_mean": self.mean,
            "predictor.1.running_var": self.spread,
            "predictor.1.num_batches_tracked": torch.tensor(self.count),
        }


@pytest.mark.parametrize(("hidden", "momentum"), [(5, 0.9), (9, 0.5), (3, 0)])
def test_byol(hidden: int, momentum: float) -> None:
    run = assert_agree(lambda: BYOL(hidden, momentum), lambda start: BootstrapYourOwn(start, momentum))
    assert run.start["predictor.3.weight"].shape == (DIM, hidden)
    assert (
        not torch.equal(run.steps[-1].values["teacher.head.weight"], run.steps[-1].values["head.weight"])
        or not momentum
    )


def test_who_has_a_teacher_and_how_slow_it_is() -> None:
    assert BYOL(4, 0.99).teacher_decay == STML(3, 1, 5, 0.99, 8).teacher_decay == 0.99
    assert (BYOL.teacher_evaluates, STML.teacher_evaluates) == (False, True)
    assert (BYOL.unit_norm, STML.unit_norm) == (False, False)
    assert SimCLR(0.5).teacher_decay is None
