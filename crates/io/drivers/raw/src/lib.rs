//! The raw driver's engine: a window into its file.
