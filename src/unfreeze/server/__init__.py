"""HTTP servers: access control, the prediction API, the studio and the label review."""
