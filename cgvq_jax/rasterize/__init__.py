"""The one operation with several implementations; `api.rasterize` is the way in."""
