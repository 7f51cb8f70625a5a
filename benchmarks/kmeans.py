"""k-means at the sizes of CUB200 and Stanford Online Products, others on the CPU: `python -m benchmarks.kmeans`."""

import faiss
import torch
from sklearn.cluster import KMeans

from benchmarks.knn import DIM, clustered
from benchmarks.timing import DEVICE, heading, medians, report
from src.vectors.kmeans import kmeans


def cluster(count: int, k: int, noise: float) -> None:
    """Time k-means, each for 25 iterations or until nothing moves; inertia beside it."""
    points, _ = clustered(count, k, noise)
    here = points.to(DEVICE)
    inertia: dict[str, float] = {}
    by_faiss = faiss.Kmeans(DIM, k, niter=25, seed=0, min_points_per_centroid=1, max_points_per_centroid=count)

    def ours() -> None:
        inertia["ours"] = kmeans(here, k, iterations=25, tolerance=0)[1]

    def by_scikit_learn() -> None:
        found = KMeans(k, n_init=1, max_iter=25, tol=0, random_state=0).fit(points.numpy())
        inertia["scikit-learn"] = float(found.inertia_)

    contenders = {"ours": ours, "faiss": lambda: by_faiss.train(points.numpy())}
    if k < 1000:  # its seeding takes minutes
        contenders["scikit-learn"] = by_scikit_learn
    seconds = medians(contenders, rounds=0 if k > 1000 else 3)
    inertia["faiss"] = float(by_faiss.index.search(points.numpy(), 1)[0].sum())
    report(f"k-means, {count:,} points, {k:,} clusters, noise {noise}", seconds)
    others = "; ".join(f"{name} {value:,.0f}" for name, value in inertia.items() if name != "ours")
    print(f"| its inertia | {inertia['ours']:,.0f} | {others} |", flush=True)


def main() -> None:
    heading("k-means, 128 dimensions, float32")
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    cluster(5_924, 100, 0.12)
    for noise in (0.08, 0.12, 0.2):
        cluster(60_502, 11_316, noise)


if __name__ == "__main__":
    main()
