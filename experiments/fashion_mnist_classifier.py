"""
Train the classifier whose features measure generated clothes, in a few minutes on a CPU.

    python experiments/fashion_mnist_classifier.py data/fashion-mnist outputs/fashion_mnist_classifier
"""

import argparse

import torch
import torch.nn.functional as F
from datasets import load_dataset
from tqdm.auto import tqdm

from pipeline_pfgmpp.data import load_images
from pipeline_pfgmpp.evaluation import FashionMNISTClassifier
from pipeline_pfgmpp.evaluation.fashion_mnist_classifier import measure_accuracy


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="data set with a train and a test split")
    parser.add_argument("output", help="folder for the weights")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=3e-3, help="highest learning rate (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    train = load_images(load_dataset(args.data, split="train"), resolution=28)
    test = load_images(load_dataset(args.data, split="test"), resolution=28)
    model = FashionMNISTClassifier(num_classes=len(train.class_names))
    loader = torch.utils.data.DataLoader(train, args.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.epochs * len(loader)
    )
    for epoch in range(1, args.epochs + 1):
        model.train()
        for batch in tqdm(loader, desc=f"Epoch {epoch} of {args.epochs}"):
            images = batch["images"].float() / 127.5 - 1
            mirrored = (torch.rand(len(images)) < 0.5)[:, None, None, None]
            logits = model(torch.where(mirrored, images.flip(-1), images))
            loss = F.cross_entropy(logits, batch["class_labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"Test accuracy after epoch {epoch}: {measure_accuracy(model, test.images, test.labels):.4f}")
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
