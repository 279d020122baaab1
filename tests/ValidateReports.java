import com.pixelmed.validate.DicomSRValidator;
import java.lang.reflect.Field;
import net.sf.saxon.jaxp.TransformerImpl;

/** PixelMed's validator over many files: its templates take most of 20 s to load, a report far less. */
public class ValidateReports {
    public static void main(String[] files) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        Field second = DicomSRValidator.class.getDeclaredField("transformerPass2");
        second.setAccessible(true);
        for (String file : files) {
            System.out.println("=== " + file);
            System.out.println(validator.validate(file));
            // Else the second pass would look for what the first pass found in the file before.
            ((TransformerImpl) second.get(validator)).getUnderlyingController().clearDocumentPool();
        }
    }
}
