"""Recall@K at the size of Stanford Online Products, against pytorch-metric-learning, and on the CPU faiss and others.

`python -m benchmarks.recall`
"""

import faiss
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from benchmarks.knn import clustered, search
from benchmarks.timing import DEVICE, heading, medians, report
from src.metrics.retrieval import Retrieval


def retrieve() -> None:
    """Recall@1, 10, 100 and mAP@R among 60,502 images."""
    points, labels = clustered(60_502, 11_316, 0.12)
    search("60,502 among themselves, the nearest 100", points, points, 100, torch.arange(len(points)))
    points, labels = points.to(DEVICE), labels.to(DEVICE)
    by_cosine = CustomKNN(CosineSimilarity(), batch_size=512)
    scores = ("precision_at_1", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(scores, k="max_bin_count", knn_func=by_cosine)
    metric = Retrieval((1, 10, 100)).to(DEVICE)
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


def main() -> None:
    heading("Recall@K among 60,502 images, 128 dimensions, float32")
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    retrieve()


if __name__ == "__main__":
    main()
