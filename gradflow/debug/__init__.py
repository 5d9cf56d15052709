"""Finding mistakes: non-finite values (`detect_anomaly`) and wrong gradients (`gradcheck`)."""
