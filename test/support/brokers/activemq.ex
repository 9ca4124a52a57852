defmodule Barytherium.Brokers.ActiveMQ do
  @moduledoc "Debian's ActiveMQ Classic, for `Barytherium.Broker`."

  @jars "/usr/share/activemq/lib"

  @doc "What is missing, as a sentence, or nil."
  def missing do
    unless File.exists?(Path.join(@jars, "activemq-stomp.jar")),
      do: "ActiveMQ is not installed: run script/bootstrap brokers"
  end

  def prepare!(directory, port) do
    File.write!(Path.join(directory, "activemq.xml"), """
    <beans xmlns="http://www.springframework.org/schema/beans"
      xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
      xsi:schemaLocation="http://www.springframework.org/schema/beans
      http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
      http://activemq.apache.org/schema/core
      http://activemq.apache.org/schema/core/activemq-core.xsd">
      <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" persistent="false"
        brokerName="barytherium" dataDirectory="#{directory}/data">
        <transportConnectors>
          <transportConnector name="stomp" uri="stomp://127.0.0.1:#{port}"/>
        </transportConnectors>
      </broker>
    </beans>
    """)

    [{"HOME", directory}]
  end

  def command(directory) do
    class_path = Enum.map_join([@jars, Path.join(@jars, "optional")], ":", &(&1 <> "/*"))
    configuration = "xbean:file:" <> Path.join(directory, "activemq.xml")

    home = [
      "-Dactivemq.home=/usr/share/activemq",
      "-Dactivemq.base=#{directory}",
      # Without them, Java 17 keeps the broker from reading its own configuration.
      "--add-opens=java.base/java.lang=ALL-UNNAMED",
      "--add-opens=java.base/java.util=ALL-UNNAMED"
    ]

    main = ["org.apache.activemq.console.Main", "start", configuration]
    {System.find_executable("java"), ["-Xmx512m" | home] ++ ["-cp", class_path | main]}
  end

  def pid(opened, _directory) do
    {:os_pid, pid} = Port.info(opened, :os_pid)
    to_string(pid)
  end

  def cleanup(_broker), do: :ok
end
