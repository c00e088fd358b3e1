"""FP16 graphs: typed so that no number can overflow, and held against FP32 with the rounding of a GPU."""
