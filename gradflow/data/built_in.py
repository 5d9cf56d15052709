"""The datasets that come with scikit-learn, by name."""

DATASETS: dict[str, str] = {
    "digits": "1797 handwritten digits of 8x8 pixels, 10 classes",
    "breast-cancer": "569 tumours by 30 measurements, 2 classes",
    "wine": "178 wines by 13 measurements, 3 classes",
    "iris": "150 flowers by 4 measurements, 3 classes",
    "diabetes": "442 patients by 10 measurements, regression",
}
"""The names that `load` knows, each with a short description."""
