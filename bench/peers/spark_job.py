"""Spark, DataFrames on ``local[2]``; script.py says how it is called.

Only expressions that Spark compiles in its JVM, no Python function; two partitions after a shuffle, one for each core.
"""

from __future__ import annotations

import os

from bench.peers.script import run_all, scratch

SETTINGS = {
    "spark.driver.memory": "8g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


def main() -> None:
    from pyspark.sql import SparkSession, functions

    builder = SparkSession.builder.master("local[2]").config("spark.local.dir", scratch())
    builder = builder.config("spark.hadoop.fs.file.impl", "org.apache.hadoop.fs.RawLocalFileSystem")  # no .crc files
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()

    def do(job: str, source: str, output: str) -> None:
        lines = spark.read.text(source, lineSep="\n")
        if job == "wordcount":
            words = lines.select(functions.explode(functions.split("value", " ")).alias("w")).where("w <> ''")
            kept = words.groupBy("w").count().select(functions.concat_ws("\t", "w", "count"))
        else:
            kept = lines.orderBy("value") if job == "sort" else lines.where(functions.col("value").startswith("~"))
        kept.write.text(output)

    run_all(do)
    os._exit(0)  # its JVM sees that, and ends: nothing is lost, and nobody waits for it


if __name__ == "__main__":
    main()
