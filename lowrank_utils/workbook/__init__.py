"""What runs, keeps and shows the workbook: jobs, runs, sweeps, results, figures, gallery, site, and one chapter a notebook."""
