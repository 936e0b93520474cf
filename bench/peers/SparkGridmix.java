import static org.apache.spark.sql.functions.col;
import static org.apache.spark.sql.functions.concat_ws;
import static org.apache.spark.sql.functions.explode;
import static org.apache.spark.sql.functions.split;
import static org.apache.spark.sql.functions.substring_index;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Iterator;
import java.util.NoSuchElementException;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.mapreduce.lib.input.SequenceFileInputFormat;
import org.apache.spark.HashPartitioner;
import org.apache.spark.api.java.JavaPairRDD;
import org.apache.spark.api.java.JavaRDD;
import org.apache.spark.api.java.JavaSparkContext;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import scala.Tuple2;

/**
 * GridMix's applications on one session of Spark. Commands come line by line on stdin, fields apart by tabs, one line of answer each:
 * "ok SECONDS" or "failed WHY". A field of inputs is paths apart by commas.
 * "cat INPUTS OUTPUT REDUCES": lines through a command, sorted by key, through a command again;
 * "count INPUTS OUTPUT REDUCES": tokens and how often each occurs;
 * "load FORMAT INPUTS OUTPUT REDUCES MAP REDUCE": lines or records of SequenceFiles ("sequence"), sorted by key, of which maps and
 * reduces keep percentages.
 */
public class SparkGridmix {
  static final StructType KEY_AND_LINE =
      new StructType().add("key", DataTypes.BinaryType).add("line", DataTypes.BinaryType);
  static SparkSession spark;
  static JavaSparkContext context;

  /** Counts as GridMix's load generator: while kept / seen is below the share, a record is kept (once more). */
  static final class Kept<A> implements Iterator<A> {
    final Iterator<A> all;
    final float share;
    A current;
    long seen;
    long kept;

    Kept(Iterator<A> all, float percent) {
      this.all = all;
      this.share = percent / 100f;
    }

    @Override
    public boolean hasNext() {
      while (seen == 0 || (float) kept / seen >= share) {
        if (!all.hasNext()) return false;
        current = all.next();
        seen++;
      }
      return true;
    }

    @Override
    public A next() {
      if (!hasNext()) throw new NoSuchElementException();
      kept++;
      return current;
    }
  }

  /** Key, and key TAB value, of a record whose Text objects the reader will use again. */
  static Row row(Tuple2<Text, Text> record) {
    Text key = record._1();
    Text value = record._2();
    byte[] line = new byte[key.getLength() + 1 + value.getLength()];
    System.arraycopy(key.getBytes(), 0, line, 0, key.getLength());
    line[key.getLength()] = '\t';
    System.arraycopy(value.getBytes(), 0, line, key.getLength() + 1, value.getLength());
    return RowFactory.create(Arrays.copyOf(key.getBytes(), key.getLength()), line);
  }

  static <A, B> Iterator<B> each(Iterator<A> all, java.util.function.Function<A, B> function) {
    return new Iterator<B>() {
      @Override
      public boolean hasNext() {
        return all.hasNext();
      }

      @Override
      public B next() {
        return function.apply(all.next());
      }
    };
  }

  static String key(String line) {
    int tab = line.indexOf('\t');
    return tab < 0 ? line : line.substring(0, tab);
  }

  static void cat(String inputs, String output, int reduces) {
    context.textFile(inputs, 1)
        .pipe("cat")
        .mapToPair(line -> new Tuple2<>(key(line), line))
        .repartitionAndSortWithinPartitions(new HashPartitioner(reduces))
        .values()
        .pipe("cat")
        .saveAsTextFile(output);
  }

  static void count(String inputs, String output, int reduces) {
    spark.conf().set("spark.sql.shuffle.partitions", reduces);
    spark.read().text(inputs.split(","))
        .select(explode(split(col("value"), "[ \t]")).as("word"))
        .where("word <> ''")
        .groupBy("word")
        .count()
        .select(concat_ws("\t", col("word"), col("count")))
        .write().text(output);
  }

  static void load(String format, String inputs, String output, int reduces, float ofMaps, float ofReduces) {
    Dataset<Row> records = format.equals("sequence") ? sequence(inputs, ofMaps) : lines(inputs, ofMaps);
    Dataset<Row> sorted = records.repartition(reduces, col("key")).sortWithinPartitions("key")
        .select(col("line").cast(DataTypes.StringType));
    sample(sorted, ofReduces).write().text(output);
  }

  /** Columns "key" and "line" of those records of SequenceFiles that maps keep. */
  static Dataset<Row> sequence(String inputs, float percent) {
    Configuration settings = new Configuration(context.hadoopConfiguration());
    @SuppressWarnings({"unchecked", "rawtypes"})
    JavaPairRDD<Text, Text> pairs =
        context.newAPIHadoopFile(inputs, (Class) SequenceFileInputFormat.class, Text.class, Text.class, settings);
    JavaRDD<Row> rows = pairs.mapPartitions(all -> each(new Kept<>(all, percent), SparkGridmix::row));
    return spark.createDataFrame(rows, KEY_AND_LINE);
  }

  static Dataset<Row> lines(String inputs, float percent) {
    return sample(spark.read().text(inputs.split(",")), percent)
        .select(substring_index(col("value"), "\t", 1).as("key"), col("value").as("line"));
  }

  /** Lines of one column of which each task keeps a percentage; where that is all, nothing is added to the plan. */
  static Dataset<Row> sample(Dataset<Row> lines, float percent) {
    if (percent == 100) return lines;
    JavaRDD<String> kept = lines.as(Encoders.STRING()).javaRDD().mapPartitions(all -> new Kept<>(all, percent));
    return spark.createDataset(kept.rdd(), Encoders.STRING()).toDF("value");
  }

  static void run(String[] field) {
    switch (field[0]) {
      case "cat": cat(field[1], field[2], Integer.parseInt(field[3])); break;
      case "count": count(field[1], field[2], Integer.parseInt(field[3])); break;
      default: load(field[1], field[2], field[3], Integer.parseInt(field[4]), Float.parseFloat(field[5]), Float.parseFloat(field[6]));
    }
  }

  public static void main(String[] arguments) throws Exception {
    spark = SparkSession.builder().getOrCreate();
    context = new JavaSparkContext(spark.sparkContext());
    LocalFileSystem files = FileSystem.getLocal(context.hadoopConfiguration()); // one for all: neither makes nor reads .crc files
    files.setVerifyChecksum(false);
    files.setWriteChecksum(false);
    BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      long start = System.nanoTime();
      String answer;
      try {
        run(line.split("\t"));
        answer = "ok " + (System.nanoTime() - start) / 1e9;
      } catch (Exception error) {
        answer = "failed " + error.toString().replace('\n', ' ');
      }
      System.out.println(answer);
    }
    spark.stop();
  }
}
