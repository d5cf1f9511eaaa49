"""The front door of SplitLearn."""
