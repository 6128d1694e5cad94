"""A model as something that works without this package: a pipeline of diffusers' own, or ONNX."""
