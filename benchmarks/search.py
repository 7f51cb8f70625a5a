"""Exact search and k-means at the sizes of the protocols, against faiss: `python -m benchmarks.search`."""

import faiss
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import heading, medians, report
from src.kmeans import kmeans
from src.neighbors import nearest_neighbors

DIM = 128


def clustered(count: int, classes: int, noise: float) -> Tensor:
    """Unit-norm points `(count, DIM)` around as many directions as there are classes."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(classes, DIM, generator=generator), dim=1)
    label = torch.randint(classes, (count,), generator=generator)
    return normalize(centres[label] + noise * torch.randn(count, DIM, generator=generator), dim=1)


def search(title: str, query: Tensor, gallery: Tensor, k: int, own: Tensor | None) -> None:
    """Time one search, once both are seen to find the same similarities."""
    index = faiss.IndexFlatIP(DIM)
    index.add(gallery.numpy())
    extra = int(own is not None)  # faiss finds the query itself too
    few = query[:200]
    mine = nearest_neighbors(few, gallery, k, own[:200] if own is not None else None)[0]
    theirs = torch.from_numpy(index.search(few.numpy(), k + extra)[0])[:, extra:]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    contenders = {
        "ours": lambda: nearest_neighbors(query, gallery, k, own),
        "faiss": lambda: index.search(query.numpy(), k + extra),
    }
    report(title, medians(contenders, rounds=3))


def cluster(count: int, k: int) -> None:
    """Time k-means, each until it converges or 25 iterations; inertia beside it."""
    for noise in (0.08, 0.12, 0.2):
        points = clustered(count, k, noise)
        inertia: dict[str, float] = {}

        def ours(points: Tensor = points, inertia: dict[str, float] = inertia) -> None:
            inertia["ours"] = kmeans(points, k, iterations=25)[1]

        def theirs(points: Tensor = points, inertia: dict[str, float] = inertia) -> None:
            found = faiss.Kmeans(DIM, k, niter=25, seed=0, min_points_per_centroid=1, max_points_per_centroid=count)
            found.train(points.numpy())
            inertia["faiss"] = float(found.index.search(points.numpy(), 1)[0].sum())

        seconds = medians({"ours": ours, "faiss": theirs}, rounds=1)
        report(f"k-means, {count:,} points, {k:,} clusters, noise {noise}", seconds)
        print(f"{'':40} inertia {inertia['ours']:,.0f}, faiss {inertia['faiss']:,.0f}")


def main() -> None:
    heading("Exact search and k-means, 128 dimensions, float32")
    faiss.omp_set_num_threads(torch.get_num_threads())
    gallery = clustered(50_000, 10, 0.2)
    search("kNN, 10,000 among 50,000, k = 200", gallery.flip(1)[:10_000].contiguous(), gallery, 200, None)
    products = clustered(60_502, 11_316, 0.12)
    search("Recall@100, 60,502 among themselves", products, products, 100, torch.arange(len(products)))
    cluster(60_502, 11_316)


if __name__ == "__main__":
    main()
