"""Exact search and k-means at the sizes of the protocols, against faiss and others: `python -m benchmarks.search`."""

import faiss
import torch
from lightly.utils.benchmarking import knn_predict
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import heading, medians, report
from src.kmeans import kmeans
from src.metrics.knn import knn_votes
from src.metrics.retrieval import Retrieval
from src.neighbors import nearest_neighbors

DIM = 128


def clustered(count: int, classes: int, noise: float) -> tuple[Tensor, Tensor]:
    """Unit-norm points `(count, DIM)` around as many directions as there are classes, and their classes."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(classes, DIM, generator=generator), dim=1)
    label = torch.randint(classes, (count,), generator=generator)
    return normalize(centres[label] + noise * torch.randn(count, DIM, generator=generator), dim=1), label


def search(title: str, query: Tensor, gallery: Tensor, k: int, own: Tensor | None) -> None:
    """Time one search, once all are seen to find the same similarities."""
    index = faiss.IndexFlatIP(DIM)
    index.add(gallery.numpy())
    other = NearestNeighbors(algorithm="brute", metric="cosine").fit(gallery.numpy())
    extra = int(own is not None)  # the others find the query itself too
    few = query[:200]
    mine = nearest_neighbors(few, gallery, k, own[:200] if own is not None else None)[0]
    for theirs in (index.search(few.numpy(), k + extra)[0], 1 - other.kneighbors(few.numpy(), k + extra)[0]):
        torch.testing.assert_close(mine, torch.from_numpy(theirs)[:, extra:], rtol=0, atol=1e-5)
    contenders = {
        "ours": lambda: nearest_neighbors(query, gallery, k, own),
        "faiss": lambda: index.search(query.numpy(), k + extra),
        "scikit-learn": lambda: other.kneighbors(query.numpy(), k + extra),
    }
    report(title, medians(contenders, rounds=3 if len(query) < 20_000 else 0))


def classify() -> None:
    """The whole kNN score of a CIFAR-10, votes included."""
    gallery, labels = clustered(50_000, 10, 0.2)
    query = normalize(gallery[:10_000] + 0.1 * torch.randn(10_000, DIM), dim=1)

    def lightly() -> Tensor:
        parts = [knn_predict(part, gallery.T.contiguous(), labels, 10, 200, 0.1) for part in query.split(512)]
        return torch.cat(parts)[:, 0]

    agree = (knn_votes(query, gallery, labels).argmax(1) == lightly()).float().mean()
    assert agree > 0.999, f"lightly's kNN gives the same class to {agree:.2%}"
    neighbors = KNeighborsClassifier(200, algorithm="brute", metric="cosine").fit(gallery.numpy(), labels.numpy())
    contenders = {
        "ours": lambda: knn_votes(query, gallery, labels),
        "lightly": lightly,
        "scikit-learn, unweighted": lambda: neighbors.predict(query.numpy()),
    }
    report("kNN classes of 10,000 by 50,000, k = 200", medians(contenders, rounds=3))
    search("the search alone", query, gallery, 200, None)


def retrieve() -> None:
    """Recall@1, 10, 100 and mAP@R among 60,502 images."""
    points, labels = clustered(60_502, 11_316, 0.12)
    search("60,502 among themselves, the nearest 100", points, points, 100, torch.arange(len(points)))
    by_cosine = CustomKNN(CosineSimilarity(), batch_size=512)
    scores = ("precision_at_1", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(scores, k="max_bin_count", knn_func=by_cosine)
    metric = Retrieval((1, 10, 100))
    found = {}

    def ours() -> None:
        metric.reset()
        metric.update(points, labels)
        found["ours"] = float(metric.compute()["R@1"]) / 100

    def metric_learning() -> None:
        found["theirs"] = theirs.get_accuracy(points, labels)["precision_at_1"]

    seconds = medians({"ours": ours, "pytorch-metric-learning, R@1 and mAP@R only": metric_learning}, rounds=0)
    assert abs(found["ours"] - found["theirs"]) < 1e-4, found
    report("R@1, R@10, R@100 and mAP@R of 60,502 images", seconds)


def cluster(count: int, k: int, noise: float) -> None:
    """Time k-means, each until it converges or 25 iterations; inertia beside it."""
    points, _ = clustered(count, k, noise)
    inertia: dict[str, float] = {}

    def ours() -> None:
        inertia["ours"] = kmeans(points, k, iterations=25)[1]

    def by_faiss() -> None:
        found = faiss.Kmeans(DIM, k, niter=25, seed=0, min_points_per_centroid=1, max_points_per_centroid=count)
        found.train(points.numpy())
        inertia["faiss"] = float(found.index.search(points.numpy(), 1)[0].sum())

    def by_scikit_learn() -> None:
        inertia["scikit-learn"] = float(KMeans(k, n_init=1, max_iter=25, random_state=0).fit(points.numpy()).inertia_)

    contenders = {"ours": ours, "faiss": by_faiss}
    if k < 1000:  # its seeding takes minutes
        contenders["scikit-learn"] = by_scikit_learn
    seconds = medians(contenders, rounds=0 if k > 1000 else 3)
    report(f"k-means, {count:,} points, {k:,} clusters, noise {noise}", seconds)
    others = "; ".join(f"{name} {value:,.0f}" for name, value in inertia.items() if name != "ours")
    print(f"| its inertia | {inertia['ours']:,.0f} | {others} |", flush=True)


def main() -> None:
    heading("Exact search and k-means, 128 dimensions, float32")
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    classify()
    retrieve()
    cluster(5_924, 100, 0.12)
    for noise in (0.08, 0.12, 0.2):
        cluster(60_502, 11_316, noise)


if __name__ == "__main__":
    main()
