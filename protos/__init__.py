"""The wire contract between robot and policy server: `.proto`, generated stubs, numpy codec."""
