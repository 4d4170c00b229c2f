"""What the study is about: entities, their names and attributes, the partition into stages, what is asked."""
