"""What is explained: a target makes a score out of the model's outputs."""
