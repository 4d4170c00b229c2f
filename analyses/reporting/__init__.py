"""What the report is made of: facts, sections, sentences, and the page itself."""
