"""The OpenAI endpoint: HTTP and text in front, token ids over gRPC behind. No torch, no Ray."""
