"""What runs, checks and shows the workbook."""
