import javax.jms.*;
import org.apache.activemq.ActiveMQConnectionFactory;

// Prints the kind and the body of messages as a JMS client gets them: URL QUEUE COUNT.
public class JmsConsumer {
    public static void main(String[] args) throws Exception {
        Connection connection = new ActiveMQConnectionFactory(args[0]).createConnection();
        connection.start();
        Session session = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
        MessageConsumer consumer = session.createConsumer(session.createQueue(args[1]));
        for (int n = 0; n < Integer.parseInt(args[2]); n++) {
            System.out.println(text(consumer.receive(20_000)));
        }
        connection.close();
    }

    private static String text(Message message) throws JMSException {
        if (message instanceof TextMessage) {
            return "text " + ((TextMessage) message).getText();
        }
        return "bytes " + ((BytesMessage) message).getBodyLength();
    }
}
