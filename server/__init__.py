"""The policy server: loads bundles, answers over gRPC and HTTP, shows what it serves."""
