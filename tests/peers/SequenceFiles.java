import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.BytesWritable;
import org.apache.hadoop.io.IntWritable;
import org.apache.hadoop.io.LongWritable;
import org.apache.hadoop.io.SequenceFile;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.io.Writable;
import org.apache.hadoop.io.compress.CompressionCodec;
import org.apache.hadoop.mapreduce.TaskAttemptID;
import org.apache.hadoop.mapreduce.lib.input.FileSplit;
import org.apache.hadoop.mapreduce.lib.input.SequenceFileRecordReader;
import org.apache.hadoop.mapreduce.task.TaskAttemptContextImpl;

/**
 * What Hadoop itself makes of SequenceFiles. Commands come line by line on stdin, fields apart by tabs, one line of answer each:
 * "split FILE START LENGTH": number of records and SHA-256 of all keys and values, each after its length in 4 bytes;
 * "write FILE COMPRESSION CODEC CLASS RECORDS": records of the formula in payload(), or "refused: WHY".
 */
public class SequenceFiles {
  static final int[] SIZES = {0, 1, 5, 127, 128, 255, 256, 1000, 70000};

  static byte[] payload(int i, int side) {
    byte[] out = new byte[SIZES[(i * 7 + side * 4) % SIZES.length]];
    for (int k = 0; k < out.length; k++) out[k] = (byte) ('a' + (i + k * (side + 1)) % 26);
    return out;
  }

  static Writable writable(String kind, int i, int side) {
    switch (kind) {
      case "Text": return new Text(payload(i, side));
      case "BytesWritable": return new BytesWritable(payload(i, side));
      case "IntWritable": return new IntWritable(i * 1000003 * (side == 0 ? 1 : -1));
      default: return new LongWritable(i * 10000000000037L * (side == 0 ? 1 : -1));
    }
  }

  static byte[] bytes(Writable item) throws Exception {
    if (item instanceof Text) return Arrays.copyOf(((Text) item).getBytes(), ((Text) item).getLength());
    if (item instanceof BytesWritable) return ((BytesWritable) item).copyBytes();
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    item.write(new DataOutputStream(out));
    return out.toByteArray();
  }

  static void add(MessageDigest digest, byte[] data) {
    digest.update(new byte[] {(byte) (data.length >> 24), (byte) (data.length >> 16), (byte) (data.length >> 8), (byte) data.length});
    digest.update(data);
  }

  static String split(Configuration conf, String file, long start, long length) throws Exception {
    SequenceFileRecordReader<Writable, Writable> reader = new SequenceFileRecordReader<>();
    reader.initialize(new FileSplit(new Path(file), start, length, null), new TaskAttemptContextImpl(conf, new TaskAttemptID()));
    MessageDigest digest = MessageDigest.getInstance("SHA-256");
    int count = 0;
    for (; reader.nextKeyValue(); count++) {
      add(digest, bytes(reader.getCurrentKey()));
      add(digest, bytes(reader.getCurrentValue()));
    }
    reader.close();
    StringBuilder hex = new StringBuilder();
    for (byte b : digest.digest()) hex.append(String.format("%02x", b));
    return count + " " + hex;
  }

  static String write(Configuration conf, String file, String compression, String codec, String kind, int records) throws Exception {
    CompressionCodec made = (CompressionCodec) Class.forName("org.apache.hadoop.io.compress." + codec).getDeclaredConstructor().newInstance();
    ((org.apache.hadoop.conf.Configurable) made).setConf(conf);
    Class<?> type = Class.forName("org.apache.hadoop.io." + kind);
    SequenceFile.Metadata metadata = new SequenceFile.Metadata();
    metadata.set(new Text("made by"), new Text("Hadoop"));
    try (SequenceFile.Writer writer = SequenceFile.createWriter(conf, SequenceFile.Writer.file(new Path(file)),
        SequenceFile.Writer.keyClass(type), SequenceFile.Writer.valueClass(type), SequenceFile.Writer.metadata(metadata),
        SequenceFile.Writer.compression(SequenceFile.CompressionType.valueOf(compression), made))) {
      for (int i = 0; i < records; i++) writer.append(writable(kind, i, 0), writable(kind, i, 1));
    } catch (IllegalArgumentException error) {
      return "refused: " + error.getMessage();
    }
    return "written";
  }

  public static void main(String[] arguments) throws Exception {
    Configuration conf = new Configuration();
    conf.setInt("io.seqfile.compress.blocksize", 100000);
    conf.set("fs.file.impl", "org.apache.hadoop.fs.RawLocalFileSystem");
    BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      String[] field = line.split("\t");
      String answer;
      try {
        answer = field[0].equals("split")
            ? split(conf, field[1], Long.parseLong(field[2]), Long.parseLong(field[3]))
            : write(conf, field[1], field[2], field[3], field[4], Integer.parseInt(field[5]));
      } catch (Exception error) {
        answer = "failed: " + error;
      }
      System.out.println(answer);
    }
  }
}
