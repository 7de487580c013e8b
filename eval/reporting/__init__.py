"""The report: tables, plots, sentences. Only what is made of finished results may enter: no model, no tokenizer."""
