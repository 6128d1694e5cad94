"""Images, labels and captions: `loading` finds them, `dataset` checks and reads them, `shapes` draws some."""
