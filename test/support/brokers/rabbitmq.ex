defmodule Barytherium.Brokers.RabbitMQ do
  @moduledoc "Debian's RabbitMQ, for `Barytherium.Broker`."

  alias Barytherium.Broker

  @doc "The value of the tag `:real_broker` of its tests."
  def name, do: :rabbitmq

  @doc "A sentence that says what is missing, or nil."
  def missing do
    unless launcher("rabbitmq-server"),
      do: "RabbitMQ is not installed: run script/bootstrap brokers"
  end

  @doc "Whether it has WebSockets here."
  def web?, do: true

  def prepare!(directory, port, tls, web) do
    plugins = "[rabbitmq_stomp, rabbitmq_web_stomp].\n"
    File.write!(Path.join(directory, "enabled_plugins"), plugins)

    File.write!(Path.join(directory, "rabbitmq.conf"), """
    listeners.tcp = none
    stomp.listeners.tcp.1 = 127.0.0.1:#{port}
    disk_free_limit.absolute = 1MB
    stomp.listeners.ssl.1 = 127.0.0.1:#{tls.port}
    ssl_options.cacertfile = #{tls.client_cacertfile}
    ssl_options.certfile = #{tls.server[:certfile]}
    ssl_options.keyfile = #{tls.server[:keyfile]}
    ssl_options.verify = verify_peer
    ssl_options.fail_if_no_peer_cert = false
    web_stomp.tcp.listener = 127.0.0.1:#{web.port}
    web_stomp.ssl.ip = 127.0.0.1
    web_stomp.ssl.port = #{web.tls_port}
    web_stomp.ssl.certfile = #{tls.server[:certfile]}
    web_stomp.ssl.keyfile = #{tls.server[:keyfile]}
    load_definitions = #{Path.join(directory, "definitions.json")}
    """)

    File.write!(Path.join(directory, "definitions.json"), definitions())

    # From 4.0 on RabbitMQ takes only frames of up to 4 MiB. Earlier releases do not know the setting, and
    # refuse an unknown one in the file above.
    File.write!(
      Path.join(directory, "advanced.config"),
      "[{rabbitmq_stomp, [{max_frame_size, 16777216}]}].\n"
    )

    [
      {"HOME", directory},
      {"ERL_EPMD_ADDRESS", "127.0.0.1"},
      # `cleanup/1` may kill this epmd before it has noticed that its node is gone.
      {"ERL_EPMD_RELAXED_COMMAND_CHECK", "1"},
      {"ERL_EPMD_PORT", to_string(Broker.free_port())},
      {"RABBITMQ_DIST_PORT", to_string(Broker.free_port())},
      {"RABBITMQ_NODENAME", "barytherium_#{port}@localhost"},
      {"RABBITMQ_CONF_ENV_FILE", Path.join(directory, "none")},
      {"RABBITMQ_CONFIG_FILE", Path.join(directory, "rabbitmq.conf")},
      {"RABBITMQ_ADVANCED_CONFIG_FILE", Path.join(directory, "advanced.config")},
      {"RABBITMQ_ENABLED_PLUGINS_FILE", Path.join(directory, "enabled_plugins")},
      {"RABBITMQ_MNESIA_BASE", Path.join(directory, "mnesia")},
      {"RABBITMQ_LOG_BASE", Path.join(directory, "log")},
      {"RABBITMQ_PID_FILE", Path.join(directory, "pid")}
    ]
  end

  # Definitions take the place of the user and the virtual host that the broker would make itself.
  defp definitions do
    {users, permissions} = Broker.users() |> Enum.map(&user/1) |> Enum.unzip()

    """
    {"vhosts": [{"name": "/"}],
     "users": [#{Enum.join(users, ", ")}],
     "permissions": [#{Enum.join(permissions, ", ")}]}
    """
  end

  defp user({name, passcode}) do
    name = name |> String.replace("\\", "\\\\") |> String.replace("\"", "\\\"")
    hash = Base.encode64("salt" <> :crypto.hash(:sha256, "salt" <> passcode))

    {~s({"name": "#{name}", "password_hash": "#{hash}", "tags": "administrator",
         "hashing_algorithm": "rabbit_password_hashing_sha256"}),
     ~s({"user": "#{name}", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"})}
  end

  def command(_directory), do: {launcher("rabbitmq-server"), []}

  # The launcher is a shell script, so its pid is not that of the VM. The VM writes its pid to a file.
  def pid(_opened, directory), do: directory |> Path.join("pid") |> File.read!() |> String.trim()

  def cleanup(broker) do
    {"ERL_EPMD_PORT", port} = List.keyfind(broker.environment, "ERL_EPMD_PORT", 0)
    System.cmd("epmd", ["-port", port, "-kill"], stderr_to_stdout: true)
  end

  @doc "Has the broker take the login of a WebSocket from the opening handshake, or from CONNECT."
  def take_http_login(broker, take) do
    code = "application:set_env(rabbitmq_web_stomp, use_http_auth, #{take})."
    {_output, 0} = System.cmd(launcher("rabbitmqctl"), ["eval", code], env: broker.environment)
    :ok
  end

  @doc "The number of messages in `queue`, including those that wait for an acknowledgement."
  def messages(broker, queue) do
    args = ["--quiet", "list_queues", "--no-table-headers", "name", "messages"]

    {output, 0} =
      System.cmd(launcher("rabbitmqctl"), args, env: broker.environment, stderr_to_stdout: true)

    [[count]] = Regex.scan(~r/^#{queue}\t(\d+)$/m, output, capture: :all_but_first)
    String.to_integer(count)
  end

  defp launcher(name) do
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/#{name}" |> Path.wildcard() |> List.first()
  end
end
