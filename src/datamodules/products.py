"""Stanford Online Products (Oh Song et al., CVPR 2016): 120,053 photographs of 22,634 products."""

from src.datamodules.published import Entry, PublishedDataModule

LISTS = ("Ebay_train.txt", "Ebay_test.txt")


class Products(PublishedDataModule):
    """The first 11,318 products, 59,551 images, train; the last 11,316, 60,502, test: as the two lists say."""

    layout = f"a folder Stanford_Online_Products with its class folders and {' and '.join(LISTS)}"

    def read(self) -> tuple[list[str], list[Entry]] | None:
        for root in (self.root, self.root / "Stanford_Online_Products"):
            if all((root / name).is_file() for name in LISTS):
                entries = []
                for name in LISTS:
                    # image_id class_id super_class_id path, after a line of headings
                    for line in (root / name).read_text().splitlines()[1:]:
                        _, product, _, path = line.split()
                        entries.append((root / path, int(product) - 1))
                classes = max(label for _, label in entries) + 1
                if classes > len(entries):
                    raise ValueError(f"{classes} classes of {len(entries)} images")
                return [str(number + 1) for number in range(classes)], entries
        return None
