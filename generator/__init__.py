"""From equations to code: language, freeze, check, lower, emit, render; and what proves it.

    spec -> trace -> ir.Program -> Checked -> Lowered -> text         catalogue.Entry holds each stage
"""
