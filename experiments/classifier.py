"""
Train a classifier whose features measure generated images, in a few minutes on a CPU.

    python experiments/classifier.py data/fashion-mnist outputs/classifier-fashion-mnist
    python experiments/classifier.py data/emoji outputs/classifier-emoji --label-column subgroup \
        --held-out validation --resolution 64 --channels 16 32 64 96 --epochs 40 --shift 4
"""

import argparse

import torch
import torch.nn.functional as F
from datasets import load_dataset
from tqdm.auto import tqdm

from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import ImageClassifier
from pipeline_pfgmpp.evaluation.classifier import measure_accuracy


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="data set with a split `train`")
    add("output", help="folder for the weights")
    add("--held-out", default="test", help="split that accuracy is measured on (default: %(default)s)")
    add("--label-column", help="column of the classes (default: as for train_accelerate.py)")
    add("--resolution", type=int, default=28, help="height and width in pixels (default: %(default)s)")
    add("--channels", type=int, nargs="+", default=(32, 64, 96), help="of the stages (default: 32 64 96)")
    add("--epochs", type=int, default=8, help="passes over the data (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    add("--shift", type=int, default=0, help="pixels to move images by at random (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    return parser.parse_args()


def vary(images: torch.Tensor, shift: int) -> torch.Tensor:
    """Mirror half of the images, and move them by up to some pixels around their edges."""
    mirrored = (torch.rand(len(images)) < 0.5)[:, None, None, None]
    images = torch.where(mirrored, images.flip(-1), images)
    if shift == 0:
        return images
    rows, columns = torch.randint(-shift, shift + 1, (2,)).tolist()
    return images.roll((rows, columns), (2, 3))


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    options = {"resolution": args.resolution, "label_column": args.label_column}
    train = load_images(load_dataset(args.data, split="train"), **options)
    held_out = load_images(load_dataset(args.data, split=args.held_out), **options)
    model = ImageClassifier(
        tuple(args.channels),
        num_classes=len(train.class_names),
        in_channels=train.channels,
        sample_size=args.resolution,
    )
    loader = torch.utils.data.DataLoader(train, args.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.epochs * len(loader)
    )
    for epoch in range(1, args.epochs + 1):
        model.train()
        for batch in tqdm(loader, desc=f"Epoch {epoch} of {args.epochs}"):
            logits = model(vary(batch["images"].float() / 127.5 - 1, args.shift))
            loss = F.cross_entropy(logits, batch["class_labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = measure_accuracy(model, held_out.images, held_out.labels)
        print(f"Accuracy on the {args.held_out} split after epoch {epoch}: {accuracy:.4f}")
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
