"""Under the names that pytorch-grad-cam has for them: `image`, `model_targets`, `reshape_transforms`."""
