"""Which images are taken of many: evenly from the classes, or held out."""

import torch
from torch import Tensor


def class_balanced_draw(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """The first `count` images of an order that takes one image of each class in turn, classes shuffled inside.

    The draw does not depend on the run's seed, and a smaller draw is the beginning of a larger one.

    Returns:
        Indices `(count,)`, sorted.

    Raises:
        ValueError: `count` is not between 1 and the number of images.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"dataset.limit={count}: the training set has {len(labels)} images, choose 1 to {len(labels)}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.unique(return_counts=True)[1]
    turn = torch.cat([torch.arange(size) for size in sizes.tolist()])
    return by_class[turn.argsort(stable=True)][:count].sort().values


def draw_evenly(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows `(min(count, N),)` of `labels` `(N,)` in rising order, from each class as many as of any other, to one.

    Which classes have one more, or any where they are more than `count`, the seed decides too.
    """
    classes, numbers = labels.unique(return_inverse=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    return class_balanced_draw(order[numbers], min(count, len(labels)), seed)


def hold_out(labels: Tensor, share: float, classes: bool) -> Tensor:
    """Which training images to choose by instead of training on them, a `share` of the labelled ones: bool `(N,)`.

    The draw does not depend on the run's seed, so that seeds are compared on the same images, and a smaller one is part
    of a larger one.

    Args:
        labels: `(N,)`, -1 where there is none.
        share: above 0 and below 1, rounded to whole images or classes.
        classes: hold out whole classes, at least two, since in one there is nothing to tell apart, and leave at least
            one; otherwise images, evenly from the classes, and leave at least one of each class.

    Raises:
        ValueError: nothing would be held out, or too little left.
    """
    labelled = (labels >= 0).nonzero().squeeze(1)
    if not len(labelled):
        raise ValueError(f"dataset.validation={share}: no training image has a label, so none can be scored")
    known = labels[labelled].unique()
    if classes:
        count = max(2, round(share * len(known)))
        if count >= len(known):
            raise ValueError(
                f"dataset.validation={share}: holds out {count} of {len(known)} training classes, which leaves none: "
                "it needs three classes or more and a share that leaves one"
            )
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        return torch.isin(labels, known[order[:count]])
    count, most = round(share * len(labelled)), len(labelled) - len(known)
    if not 1 <= count <= most:
        raise ValueError(
            f"dataset.validation={share}: holds out {count} of {len(labelled)} labelled training images: it must be at "
            f"least 1, and at most {most}, so that each of the {len(known)} classes is trained on"
        )
    kept = class_balanced_draw(labels[labelled], len(known))  # one image of each class
    free = labelled[~torch.isin(torch.arange(len(labelled)), kept)]
    drawn = free[class_balanced_draw(labels[free], count)]
    return torch.isin(torch.arange(len(labels)), drawn)
