import java.io.DataOutputStream;
import java.io.IOException;
import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.conf.Configured;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.BytesWritable;
import org.apache.hadoop.io.IntWritable;
import org.apache.hadoop.io.LongWritable;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.mapreduce.Job;
import org.apache.hadoop.mapreduce.Mapper;
import org.apache.hadoop.mapreduce.Partitioner;
import org.apache.hadoop.mapreduce.RecordWriter;
import org.apache.hadoop.mapreduce.Reducer;
import org.apache.hadoop.mapreduce.TaskAttemptContext;
import org.apache.hadoop.mapreduce.lib.input.FileInputFormat;
import org.apache.hadoop.mapreduce.lib.input.FixedLengthInputFormat;
import org.apache.hadoop.mapreduce.lib.output.FileOutputFormat;
import org.apache.hadoop.util.Tool;
import org.apache.hadoop.util.ToolRunner;

/** Word count, sort and scan: "HadoopJobs [-D NAME=VALUE]... JOB INPUT OUTPUT [JOB INPUT OUTPUT]..." prints the seconds of each. */
public class HadoopJobs extends Configured implements Tool {
  static final int KEY = 10;
  static final int RECORD = 100;
  static final int REDUCES = 2;

  /** Counts in memory and emits when the split is done ("in-mapper combining"): much less to sort than a combiner leaves. */
  public static class CountWords extends Mapper<LongWritable, Text, Text, IntWritable> {
    static final int WORDS_MAX = 1 << 20;
    final Map<Text, IntWritable> counts = new HashMap<>();
    final Text word = new Text();

    @Override
    public void map(LongWritable offset, Text line, Context context) throws IOException, InterruptedException {
      byte[] text = line.getBytes();
      int end = line.getLength();
      for (int i = 0; i < end; ) {
        while (i < end && separates(text[i])) i++;
        int start = i;
        while (i < end && !separates(text[i])) i++;
        if (i > start) count(text, start, i - start);
      }
      if (counts.size() > WORDS_MAX) cleanup(context);
    }

    void count(byte[] text, int start, int length) {
      word.set(text, start, length);
      IntWritable count = counts.get(word);
      if (count == null) counts.put(new Text(word), new IntWritable(1));
      else count.set(count.get() + 1);
    }

    @Override
    protected void cleanup(Context context) throws IOException, InterruptedException {
      for (Map.Entry<Text, IntWritable> entry : counts.entrySet()) context.write(entry.getKey(), entry.getValue());
      counts.clear();
    }

    static boolean separates(byte b) {
      return b == ' ' || b == '\t' || b == '\r' || b == '\f';
    }
  }

  public static class Sum extends Reducer<Text, IntWritable, Text, IntWritable> {
    final IntWritable sum = new IntWritable();

    @Override
    public void reduce(Text word, Iterable<IntWritable> counts, Context context) throws IOException, InterruptedException {
      int total = 0;
      for (IntWritable count : counts) total += count.get();
      sum.set(total);
      context.write(word, sum);
    }
  }

  /** Key and value of each record; in a scan only of those that start with a tilde. */
  public static class Records extends Mapper<LongWritable, BytesWritable, Text, Text> {
    final Text key = new Text();
    final Text value = new Text();
    boolean scan;

    @Override
    protected void setup(Context context) {
      scan = context.getNumReduceTasks() == 0;
    }

    @Override
    public void map(LongWritable offset, BytesWritable record, Context context) throws IOException, InterruptedException {
      byte[] bytes = record.getBytes();
      if (scan && bytes[0] != '~') return;
      key.set(bytes, 0, KEY);
      value.set(bytes, KEY, RECORD - KEY);
      context.write(key, value);
    }
  }

  /** Ranges of equal width of the first three characters, which are printable and equally likely: no sampling is needed. */
  public static class Ranges extends Partitioner<Text, Text> {
    @Override
    public int getPartition(Text key, Text value, int partitions) {
      byte[] bytes = key.getBytes();
      long rank = ((bytes[0] - 32) * 95L + bytes[1] - 32) * 95 + bytes[2] - 32;
      return (int) (rank * partitions / (95 * 95 * 95));
    }
  }

  /** Writes key and value, nothing between them. */
  public static class RecordFiles extends FileOutputFormat<Text, Text> {
    @Override
    public RecordWriter<Text, Text> getRecordWriter(TaskAttemptContext context) throws IOException {
      Path path = getDefaultWorkFile(context, "");
      DataOutputStream file = path.getFileSystem(context.getConfiguration()).create(path, false, 1 << 20);
      return new RecordWriter<Text, Text>() {
        @Override
        public void write(Text key, Text value) throws IOException {
          file.write(key.getBytes(), 0, key.getLength());
          file.write(value.getBytes(), 0, value.getLength());
        }

        @Override
        public void close(TaskAttemptContext done) throws IOException {
          file.close();
        }
      };
    }
  }

  @Override
  public int run(String[] arguments) throws Exception {
    LocalFileSystem files = FileSystem.getLocal(getConf()); // one for all: neither makes nor reads .crc files
    files.setVerifyChecksum(false);
    files.setWriteChecksum(false);
    FixedLengthInputFormat.setRecordLength(getConf(), RECORD);
    for (int i = 0; i < arguments.length; i += 3) {
      long start = System.nanoTime();
      if (!job(arguments[i], arguments[i + 1], arguments[i + 2]).waitForCompletion(false)) return 1;
      System.out.println((System.nanoTime() - start) / 1e9);
    }
    return 0;
  }

  Job job(String name, String input, String output) throws IOException {
    Job job = Job.getInstance(getConf(), name);
    job.setJarByClass(HadoopJobs.class);
    job.setNumReduceTasks(name.equals("scan") ? 0 : REDUCES);
    job.setOutputKeyClass(Text.class);
    if (name.equals("wordcount")) {
      job.setMapperClass(CountWords.class);
      job.setReducerClass(Sum.class);
      job.setOutputValueClass(IntWritable.class);
    } else {
      job.setInputFormatClass(FixedLengthInputFormat.class);
      job.setMapperClass(Records.class);
      job.setPartitionerClass(Ranges.class);
      job.setOutputFormatClass(RecordFiles.class);
      job.setOutputValueClass(Text.class);
    }
    FileInputFormat.addInputPath(job, new Path(input));
    FileOutputFormat.setOutputPath(job, new Path(output));
    return job;
  }

  public static void main(String[] arguments) throws Exception {
    System.exit(ToolRunner.run(new Configuration(), new HadoopJobs(), arguments));
  }
}
