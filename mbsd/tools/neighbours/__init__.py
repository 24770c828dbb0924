"""`mbsd neighbours`: a page of the items that are nearest to titles, pictures and other items."""
