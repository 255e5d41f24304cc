"""Maps of stores: layouts, cells with icons, their page."""
