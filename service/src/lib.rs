//! What every Millrace process needs: TOML configuration with units, logging, signals.
