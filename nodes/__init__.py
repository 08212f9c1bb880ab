"""The nodes: schema, tooltips and one call into pure_core each."""
