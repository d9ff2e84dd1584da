//! The global-state half of each driver.
