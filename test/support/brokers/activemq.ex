defmodule Barytherium.Brokers.ActiveMQ do
  @moduledoc "Debian's ActiveMQ Classic, for `Barytherium.Broker`."

  alias Barytherium.Broker

  @jars "/usr/share/activemq/lib"

  @doc "The value of the tag `:real_broker` of its tests."
  def name, do: :activemq

  @doc "A sentence that says what is missing, or nil."
  def missing do
    unless File.exists?(Path.join(@jars, "activemq-stomp.jar")),
      do: "ActiveMQ is not installed: run script/bootstrap brokers"
  end

  # Not a secret: nobody else reads these key stores.
  @password "password"

  # Debian's package has no WebSockets. `script/websocket` builds what is missing.
  @web "_build/websocket/activemq/classpath"

  @doc "Whether it has WebSockets here."
  def web?, do: File.exists?(@web)

  def prepare!(directory, port, tls, web) do
    key_store = key_store!(directory, tls.server)
    trust_store = trust_store!(directory, tls.client_cacertfile)
    jms = Broker.free_port()

    File.write!(Path.join(directory, "activemq.xml"), """
    <beans xmlns="http://www.springframework.org/schema/beans"
      xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
      xsi:schemaLocation="http://www.springframework.org/schema/beans
      http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
      http://activemq.apache.org/schema/core
      http://activemq.apache.org/schema/core/activemq-core.xsd">
      <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" persistent="false"
        brokerName="barytherium" dataDirectory="#{directory}/data">
        <plugins>
          <simpleAuthenticationPlugin anonymousAccessAllowed="true">
            <users>#{Enum.map_join(Broker.users(), &user/1)}</users>
          </simpleAuthenticationPlugin>
        </plugins>
        <sslContext>
          <sslContext keyStore="file:#{key_store}" keyStoreType="PKCS12"
            keyStorePassword="#{@password}" trustStore="file:#{trust_store}"
            trustStoreType="PKCS12" trustStorePassword="#{@password}"/>
        </sslContext>
        <transportConnectors>
          <transportConnector name="openwire" uri="tcp://127.0.0.1:#{jms}"/>
          <transportConnector name="stomp" uri="stomp://127.0.0.1:#{port}"/>
          <transportConnector name="stomp+ssl"
            uri="stomp+ssl://127.0.0.1:#{tls.port}?transport.wantClientAuth=true"/>
          #{web && web_connectors(web)}
        </transportConnectors>
      </broker>
    </beans>
    """)

    [{"HOME", directory}, {"JMS_URL", "tcp://127.0.0.1:#{jms}"}]
  end

  defp web_connectors(web) do
    """
    <transportConnector name="ws" uri="ws://127.0.0.1:#{web.port}"/>
    <transportConnector name="wss" uri="wss://127.0.0.1:#{web.tls_port}"/>
    """
  end

  defp user({name, passcode}) do
    ~s(<authenticationUser username="#{xml(name)}" password="#{xml(passcode)}" groups="users"/>)
  end

  defp xml(text) do
    for <<character::utf8 <- text>>, into: "", do: "&##{character};"
  end

  # ActiveMQ cannot read PEM files.
  defp key_store!(directory, server) do
    path = Path.join(directory, "server.p12")
    files = ["-in", server[:certfile], "-inkey", server[:keyfile], "-out", path]
    run!("openssl", ["pkcs12", "-export", "-passout", "pass:#{@password}"] ++ files)
    path
  end

  defp trust_store!(directory, cacertfile) do
    path = Path.join(directory, "trusted.p12")
    store = ["-keystore", path, "-storetype", "PKCS12", "-storepass", @password]
    run!("keytool", ["-importcert", "-noprompt", "-alias", "ca", "-file", cacertfile] ++ store)
    path
  end

  defp run!(command, args) do
    {output, status} = System.cmd(command, args, stderr_to_stdout: true)
    status == 0 || raise "#{command}: #{output}"
  end

  @doc "What a JMS client gets from a queue: `\"text BODY\"` or `\"bytes SIZE\"` for each message."
  def jms_messages(broker, queue, count) do
    {"JMS_URL", url} = List.keyfind(broker.environment, "JMS_URL", 0)
    source = Path.join(__DIR__, "JmsConsumer.java")
    args = ["-cp", class_path(), source, url, queue, to_string(count)]
    {output, 0} = System.cmd("java", args, stderr_to_stdout: true)
    for line <- String.split(output, "\n", trim: true), not (line =~ ~r/^log4j:/), do: line
  end

  defp class_path do
    jars = Enum.map_join([@jars, Path.join(@jars, "optional")], ":", &(&1 <> "/*"))
    if web?(), do: jars <> ":" <> String.trim(File.read!(@web)), else: jars
  end

  def command(directory) do
    configuration = "xbean:file:" <> Path.join(directory, "activemq.xml")

    home = [
      "-Dactivemq.home=/usr/share/activemq",
      "-Dactivemq.base=#{directory}",
      # Without these, the broker cannot read its own configuration on Java 17.
      "--add-opens=java.base/java.lang=ALL-UNNAMED",
      "--add-opens=java.base/java.util=ALL-UNNAMED"
    ]

    main = ["org.apache.activemq.console.Main", "start", configuration]
    {System.find_executable("java"), ["-Xmx512m" | home] ++ ["-cp", class_path() | main]}
  end

  def pid(opened, _directory) do
    {:os_pid, pid} = Port.info(opened, :os_pid)
    to_string(pid)
  end

  def cleanup(_broker), do: :ok
end
