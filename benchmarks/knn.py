"""The kNN score at the size of CIFAR-10, against faiss, lightly and scikit-learn: `python -m benchmarks.knn`."""

import faiss
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import heading, medians, report
from src.metrics.knn import knn_votes
from src.vectors.neighbors import nearest_neighbors

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
    """The whole score, votes included."""
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


def main() -> None:
    heading("kNN of 10,000 images among 50,000, 128 dimensions, float32")
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    classify()


if __name__ == "__main__":
    main()
