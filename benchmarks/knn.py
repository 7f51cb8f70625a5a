"""The kNN score at the size of CIFAR-10, against lightly, and faiss and scikit-learn on the CPU.

`python -m benchmarks.knn`
"""

import faiss
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import DEVICE, heading, medians, report
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
    here, there, itself = query.to(DEVICE), gallery.to(DEVICE), None if own is None else own.to(DEVICE)
    mine = nearest_neighbors(here[:200], there, k, None if itself is None else itself[:200])[0].cpu()
    for theirs in (index.search(few.numpy(), k + extra)[0], 1 - other.kneighbors(few.numpy(), k + extra)[0]):
        torch.testing.assert_close(mine, torch.from_numpy(theirs)[:, extra:], rtol=0, atol=1e-5)
    contenders = {
        "ours": lambda: nearest_neighbors(here, there, k, itself),
        "faiss": lambda: index.search(query.numpy(), k + extra),
        "scikit-learn": lambda: other.kneighbors(query.numpy(), k + extra),
    }
    report(title, medians(contenders, rounds=3 if len(query) < 20_000 else 0))


def classify() -> None:
    """The whole score, votes included."""
    gallery, labels = clustered(50_000, 10, 0.2)
    query = normalize(gallery[:10_000] + 0.1 * torch.randn(10_000, DIM), dim=1)
    here = query.to(DEVICE), gallery.to(DEVICE), labels.to(DEVICE)

    def lightly() -> Tensor:
        queries, points, classes = here
        points = points.T.contiguous()
        return torch.cat([knn_predict(part, points, classes, 10, 200, 0.1) for part in queries.split(512)])[:, 0]

    agree = (knn_votes(*here).argmax(1) == lightly()).float().mean()
    assert agree > 0.999, f"lightly's kNN gives the same class to {agree:.2%}"
    neighbors = KNeighborsClassifier(200, algorithm="brute", metric="cosine").fit(gallery.numpy(), labels.numpy())
    contenders = {
        "ours": lambda: knn_votes(*here),
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
