"""Teaches a small neural network to read handwritten digits.

Reads params.yaml; writes metrics.json, confusion_matrix.png and model.joblib. It knows nothing of gpu-runner: what
works here works there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import joblib
import matplotlib as mpl
import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

mpl.use("Agg")  # no screen on a rented machine; must be said before pyplot is imported
import matplotlib.pyplot as plt

Images = NDArray[np.float64]
Labels = NDArray[np.int64]

SIDE = 8  # an image has 8 x 8 pixels
CLASSES = np.arange(10)


@dataclass(frozen=True)
class Params:
    """What params.yaml says."""

    seed: int
    test_share: float
    augment: bool
    hidden_layers: list[int]
    epochs: int
    batch_size: int
    learning_rate: float
    l2: float


@dataclass(frozen=True)
class Data:
    """Images as rows of 64 numbers from 0 to 1, and the digit that each one shows."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def main() -> None:
    """Train, measure, and write down the results."""
    params = Params(**yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))
    data = load(params)
    print(f"{len(data.train_labels)} images to learn from, {len(data.test_labels)} to be tested on", flush=True)
    with threadpool_limits(limits=1):  # matrices this small lose more by sharing the work than they win
        model, history = train(params, data)
    predicted = model.predict(data.test_images)
    accuracy = float(accuracy_score(data.test_labels, predicted))
    macro_f1 = float(f1_score(data.test_labels, predicted, average="macro"))
    write_metrics(accuracy, history, macro_f1=round(macro_f1, 6))
    draw(confusion_matrix(data.test_labels, predicted, labels=CLASSES), accuracy, Path("confusion_matrix.png"))
    joblib.dump(model, "model.joblib")
    print(f"accuracy {accuracy:.2%}; wrote metrics.json, confusion_matrix.png, model.joblib")


def load(params: Params) -> Data:
    """The digits data that comes with scikit-learn, split in two parts with equal shares of each digit."""
    digits = load_digits()
    parts = train_test_split(
        digits.data / 16.0,
        digits.target,
        test_size=params.test_share,
        random_state=params.seed,
        stratify=digits.target,
    )
    train_images, test_images, train_labels, test_labels = parts
    if params.augment:
        train_images, train_labels = with_shifted(train_images, train_labels)
    return Data(train_images, train_labels, test_images, test_labels)


def with_shifted(images: Images, labels: Labels) -> tuple[Images, Labels]:
    """Each image as it is, and moved by one pixel up, down, left and right."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[:, y : y + SIDE, x : x + SIDE].reshape(-1, SIDE * SIDE) for y, x in corners]
    return np.concatenate(moved), np.tile(labels, len(corners))


def train(params: Params, data: Data) -> tuple[MLPClassifier, dict[str, list[float]]]:
    """The model after the last epoch, and its loss and accuracy after each one."""
    model = MLPClassifier(
        hidden_layer_sizes=tuple(params.hidden_layers),
        batch_size=params.batch_size,
        learning_rate_init=params.learning_rate,
        alpha=params.l2,
        random_state=params.seed,
    )
    history: dict[str, list[float]] = {"loss": [], "test_accuracy": []}
    for epoch in range(1, params.epochs + 1):
        model.partial_fit(data.train_images, data.train_labels, classes=CLASSES)
        accuracy = float(model.score(data.test_images, data.test_labels))
        history["loss"].append(round(float(model.loss_), 6))
        history["test_accuracy"].append(round(accuracy, 6))
        print(f"epoch {epoch:2d}/{params.epochs}  loss {model.loss_:.4f}  test accuracy {accuracy:.4f}", flush=True)
        write_metrics(accuracy, history)
    return model, history


def write_metrics(accuracy: float, history: dict[str, list[float]], **more: float) -> None:
    """Write metrics.json; after each epoch, so that a training that is stopped early has something to show."""
    metrics = {"accuracy": round(accuracy, 6), "loss": history["loss"][-1], **more, "history": history}
    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def draw(matrix: Labels, accuracy: float, path: Path) -> None:
    """Draw which digit was taken for which; the colour is the share of the row, the number is the count."""
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    figure, axes = plt.subplots(figsize=(7.2, 6.4), dpi=150, layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column]:
            wrong = row != column
            colour = "#b3261e" if wrong else "white" if shares[row, column] > 1 / 2 else "black"
            weight = "bold" if wrong else "normal"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontweight=weight)
    axes.set_xticks(CLASSES)
    axes.set_yticks(CLASSES)
    axes.set_xticks(np.arange(-0.5, len(CLASSES)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(CLASSES)), minor=True)
    axes.grid(which="minor", color="#d9dee5", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("taken for", fontsize=11)
    axes.set_ylabel("digit", fontsize=11)
    title = f"{matrix.trace()} of {matrix.sum()} digits read right ({accuracy:.1%})"
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", pad=12)
    colours = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02, format=lambda share, _: f"{share:.0%}")
    colours.set_label("share of the digit's images", fontsize=9)
    plt.setp(colours.outline, visible=False)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
