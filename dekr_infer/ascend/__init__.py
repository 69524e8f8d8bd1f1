"""What is done around the Ascend tools on an NPU host: asking, calling, checking, explaining."""
