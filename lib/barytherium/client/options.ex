defmodule Barytherium.Client.Options do
  @moduledoc false
  # The options of `Barytherium.Client.start_link/1` and of `Barytherium.Client.subscribe/3`.

  alias Barytherium.Client.{Backoff, Endpoint, Feed, Outbound}
  alias Barytherium.{Connection, Network, Schema, Secret}
  alias Barytherium.Connection.Http

  @headers "a list of {name, value}, a function without arguments, or {module, function, arguments}"

  @secret {:secret,
           {:is, &__MODULE__.secret?/1,
            "a string, a function without arguments, or {module, function, arguments}"}}

  @schema [
    url: {
      {:secret, {:is, &is_binary/1, "a URL: " <> Endpoint.form()}},
      nil,
      "The broker: `stomp://user:pass@host:port/vhost`, or `stomp+ssl://` for TLS. The port " <>
        "defaults to 61613, with TLS to 61614. User, password and virtual host are " <>
        "percent-encoded, so the virtual host `/a` is written `/%2Fa`. `ws://user:pass@host:port/path?query`, or " <>
        "`wss://` with TLS, is a WebSocket: the port defaults to 80 and 443, and the virtual host is in `:vhost`."
    },
    urls: {
      {:secret, {:is, &__MODULE__.urls?/1, "a list of URLs: " <> Endpoint.form()}},
      nil,
      "Several brokers, instead of `:url`. They are tried in this order. `{url, options}` has " <>
        "options of `Barytherium.Network` for one of them."
    },
    shuffle: {:boolean, false, "Try the brokers in random order."},
    login:
      {@secret, nil,
       "The login, unless it is in the URL: a string, a function without arguments, or " <>
         "`{module, function, arguments}`. A function is called for each connection."},
    passcode: {@secret, nil, "The password, likewise. It appears in no log and no state."},
    login_in: {
      {:one_of, [:connect, :upgrade]},
      :connect,
      "With `:upgrade`, a WebSocket's opening handshake has login and passcode (`authorization: Basic`), and CONNECT " <>
        "has not."
    },
    credentials_timeout:
      {:time, 30_000, "Milliseconds that a function for the login or the passcode may take."},
    vhost:
      {:string, nil, "The virtual host, unless it is in the URL. RabbitMQ's first one is `/`."},
    heart_beat: {
      {:is, &__MODULE__.heart_beat?/1, "two times in milliseconds: {send, receive}"},
      {10_000, 10_000},
      "Milliseconds in which this side can send, and wants to receive, a heart-beat. 0: none."
    },
    versions: {
      {:is, &__MODULE__.versions?/1, ~s(a list of "1.0", "1.1" and "1.2")},
      ["1.2", "1.1", "1.0"],
      "The versions of STOMP that the broker may choose from."
    },
    client_id:
      {:string, nil,
       "The header `client-id` of CONNECT: whose durable subscriptions they are, on ActiveMQ. A broker takes one " <>
         "connection with it at a time."},
    headers: {
      {:secret, {:is, &__MODULE__.headers_or_function?/1, @headers}},
      [],
      "Further headers of CONNECT: a list of `{name, value}`, or a function (or `{module, function, arguments}`) that " <>
        "returns one and is called for each connection, like those for the credentials."
    },
    backoff: {
      {:is, &__MODULE__.backoff?/1, "two times in milliseconds: {shortest, longest}"},
      {500, 30_000},
      "The shortest and the longest wait before the next attempt to connect, in milliseconds. The " <>
        "wait doubles with each attempt, and is shortened by up to half of it at random. It starts " <>
        "again with the shortest when a connection has lasted for the longest wait."
    },
    spool: {
      {:is, &__MODULE__.spool?/1, ":memory or the path of a directory"},
      nil,
      "Where `Barytherium.Client.publish_async/4` keeps messages until the broker has confirmed them, also over a " <>
        "disconnect: `:memory`, or the path of a directory for files, in which they also survive the end of the VM. " <>
        "Default: nowhere. See [Publishing without waiting](patterns.html#publishing-without-waiting)."
    },
    publish_window: {
      :count,
      8 * 1024 * 1024,
      "How many bytes of messages `Barytherium.Client.publish_async/4` has in memory before it waits; with a directory in " <>
        "`:spool`, before they are only in files. A message counts with about 500 bytes besides its body."
    },
    max_attempts: {
      :limit,
      :infinity,
      "After so many failed attempts to connect, one after the other, the client ends with the reason " <>
        "`{:shutdown, {:max_attempts, reason}}`. With `:infinity` it never gives up."
    },
    ssl: {{:secret, :list}, [], "Options of `:ssl.connect/3` for the brokers with TLS."},
    listener: {
      {:is, &is_pid/1, "a pid"},
      nil,
      "A process that is told about the connection: see \"Events\" in `Barytherium.Client`."
    }
  ]

  @subscription [
    ack: {
      {:one_of, [:auto, :client, :client_individual]},
      :client_individual,
      "`:auto`: a message counts as handled when the broker has sent it. `:client_individual`: " <>
        "each message is acknowledged. `:client`: an acknowledgement covers all messages before it."
    },
    prefetch: {
      :mark,
      100,
      "How many messages the broker may send before the first of them is acknowledged, with " <>
        "RabbitMQ, ActiveMQ and Artemis. Artemis counts bytes: 1,024 for each message. `:infinity`: " <>
        "as many as the broker likes. Not for `ack: :auto`."
    },
    durable: {
      :string,
      nil,
      "The name of a durable subscription to a topic. The broker keeps messages while the " <>
        "client is away. ActiveMQ also needs the option `:client_id` of the client."
    },
    inflate: {
      :boolean,
      nil,
      "Whether compressed bodies are inflated. Default: as the option `:inflate` of the connection says."
    },
    headers: {
      {:is, &__MODULE__.headers_or_function?/1, @headers},
      [],
      "Further headers of SUBSCRIBE: a list, or a function as for those of CONNECT, which is called for each connection. " <>
        "If it fails, those of the last connection are used."
    },
    max_silence: {
      :limit,
      :infinity,
      "Milliseconds without a message after which the feed is not well: `Barytherium.Client.health/1` tells, the log, " <>
        "and a telemetry event. A feed can be dead while heart-beats go on."
    },
    on_silence: {
      {:one_of, [:report, :reconnect]},
      :report,
      "With `:reconnect` the connection ends after `:max_silence`, with the reason `:silent`, and another one is made. " <>
        "Not while a consumer handles messages, or reading is paused: then nothing can come. A subscriber that leaves as " <>
        "many as `:prefetch` messages unacknowledged gets nothing either, so choose a longer time than that takes."
    },
    max_lag: {
      :limit,
      :infinity,
      "Milliseconds by which messages may be older than their header `:timestamp` says when they arrive. It is looked " <>
        "at once in 16 messages, and in each while it is large."
    },
    timestamp: {
      :string,
      "timestamp",
      "The header with the time when a message was sent: milliseconds since 1970, as ActiveMQ has it, or seconds. 0 is " <>
        "no time."
    },
    sequence: {
      {:is, &Feed.sequence?/1, "the name of a header, or {name, numbers}"},
      nil,
      "A header that numbers the messages: `Barytherium.Client.feeds/1` counts gaps and repeats. `{name, numbers}` if " <>
        "they begin with 0 again after so many: `{\"SequenceNumber\", 10_000_000}`."
    },
    receipt: {
      :boolean,
      true,
      "With `false` the client does not wait for receipts of SUBSCRIBE and UNSUBSCRIBE: some brokers send " <>
        "none. (A first message confirms a subscription as well.) A refusal is not noticed then."
    }
  ]

  @subscribing [
    to:
      {{:is, &is_pid/1, "a pid"}, nil, "The process that gets the messages. Default: the caller."},
    timeout: {:time, 5_000, "Milliseconds that the broker's answer may take."}
  ]

  @no_string "a function for the credentials did not return a string"
  @no_headers "a function for headers did not return a list of {name, value}"
  @colon "a login with a colon cannot be in the opening handshake of a WebSocket"

  @doc "The messages of errors about credentials, which show none."
  @spec about_credentials() :: [String.t()]
  def about_credentials, do: [@no_string, @no_headers, @colon]

  @type settings :: %{
          endpoints: [Endpoint.t(), ...],
          shuffle: boolean(),
          versions: [String.t(), ...],
          max_attempts: pos_integer() | :infinity,
          credentials_timeout: non_neg_integer(),
          login_in: :connect | :upgrade,
          connect: Secret.t(map()),
          backoff: Backoff.t(),
          spool: nil | :memory | Path.t(),
          publish_window: pos_integer(),
          listener: nil | pid()
        }

  @spec schema() :: Schema.t()
  def schema, do: @schema

  @spec docs() :: String.t()
  def docs, do: Schema.docs(@schema)

  @doc "The options of a subscription as a Markdown list."
  @spec subscription_docs() :: String.t()
  def subscription_docs, do: Schema.docs(@subscription ++ @subscribing)

  @doc "What only `Barytherium.Client.subscribe/3` knows."
  @spec subscribing_schema() :: Schema.t()
  def subscribing_schema, do: @subscribing

  @spec subscription_schema() :: Schema.t()
  def subscription_schema, do: @subscription

  @doc """
  Checks the options of a client. Options of `Barytherium.Network` may be among them.
  """
  @spec settings!([term()]) :: settings()
  def settings!(opts) do
    {options, network} = Schema.split(opts, @schema)
    check_known!(network)
    check_headers!(:connect, options.headers)
    check_client_id!(options)

    %{
      endpoints: endpoints!(options, network),
      shuffle: options.shuffle,
      versions: options.versions,
      max_attempts: options.max_attempts,
      credentials_timeout: options.credentials_timeout,
      login_in: options.login_in,
      connect:
        Secret.new(
          Map.take(options, [:login, :passcode, :vhost, :client_id, :headers, :heart_beat])
        ),
      backoff: Backoff.new(options.backoff),
      spool: options.spool,
      publish_window: options.publish_window,
      listener: options.listener
    }
  end

  @doc """
  Raises `ArgumentError` for an option that no client knows, and names the nearest one. `more` are names that the
  caller knows besides.
  """
  @spec check_known!([term()], [atom()]) :: :ok
  def check_known!(opts, more \\ []) do
    # `Barytherium.Network` would name the nearest of its own options only.
    network = Network.Options.names()
    known = Keyword.keys(@schema) ++ network ++ more

    for name <- Enum.map(opts, &Schema.name/1) do
      if name in [:host, :port],
        do:
          raise(
            ArgumentError,
            "option #{inspect(name)}: the broker is in option :url: #{Endpoint.form()}"
          )

      unless name in known or name in [:binary, :mode, :active, :packet],
        do: Schema.raise_unknown(name, known)
    end

    :ok
  end

  # Of repeated headers only the first counts.
  defp check_client_id!(%{client_id: nil}), do: :ok

  defp check_client_id!(%{headers: headers}) do
    if is_list(headers) and List.keymember?(headers, "client-id", 0),
      do: raise(ArgumentError, "option :client_id is given, and client-id among the :headers"),
      else: :ok
  end

  defp endpoints!(%{url: nil, urls: nil}, _network),
    do: raise(ArgumentError, "option :url is missing: " <> Endpoint.form())

  defp endpoints!(%{url: url, urls: urls}, _network) when url != nil and urls != nil,
    do: raise(ArgumentError, "options :url and :urls are both given")

  defp endpoints!(options, network) do
    endpoints = for url <- options.urls || [options.url], do: parsed(url)

    if options.ssl != [] and not Enum.any?(endpoints, & &1.secure),
      do:
        raise(
          ArgumentError,
          "option :ssl is given, and no URL begins with stomp+ssl:// or wss://"
        )

    check_websocket!(options, network, Enum.any?(endpoints, & &1.websocket))

    Enum.map(endpoints, &Endpoint.complete!(&1, network, options.ssl))
  end

  defp check_websocket!(_options, _network, true), do: :ok

  defp check_websocket!(options, network, false) do
    if options.login_in == :upgrade or Enum.any?(network, &(Schema.name(&1) == :upgrade_headers)),
      do:
        raise(
          ArgumentError,
          "there are options for a WebSocket, and no URL begins with ws:// or wss://"
        )
  end

  defp parsed(url) do
    case Endpoint.parse(url) do
      {:ok, endpoint} -> endpoint
      {:error, text} -> raise ArgumentError, "option :url: " <> text
    end
  end

  @doc "The headers of CONNECT. Calls the functions for the credentials."
  @spec connect_headers(settings(), Endpoint.t()) :: Barytherium.Frame.frame_headers()
  def connect_headers(settings, endpoint) do
    options = Secret.reveal(settings.connect)
    {sends, wants} = options.heart_beat

    login =
      case logs_in(settings, endpoint) do
        :upgrade -> []
        :connect -> login_headers(credentials(options, endpoint))
      end

    [
      {"host", endpoint.vhost || options.vhost || "/"},
      {"accept-version", settings.versions |> Enum.sort() |> Enum.join(",")},
      {"heart-beat", "#{sends},#{wants}"}
    ] ++ login ++ header("client-id", options.client_id) ++ headers(:connect, options.headers)
  end

  @doc "Headers as they were given, or as the function for them returns them. Raises `ArgumentError` for what is none."
  @spec headers(:connect | :subscribe, term()) :: Barytherium.Frame.frame_headers()
  def headers(_command, headers) when is_list(headers), do: headers

  def headers(command, function) do
    headers = Schema.call(function)
    unless headers?(headers), do: raise(ArgumentError, @no_headers)
    Outbound.check_headers!(command, headers)
    headers
  end

  @doc "Checks headers that are there already."
  @spec check_headers!(:connect | :subscribe, term()) :: :ok
  def check_headers!(command, headers) when is_list(headers),
    do: Outbound.check_headers!(command, headers)

  def check_headers!(_command, _function), do: :ok

  @doc "The headers of the opening handshake of a WebSocket that log in. Calls the functions for the credentials."
  @spec upgrade_headers(settings(), Endpoint.t()) :: Connection.Http.headers()
  def upgrade_headers(settings, endpoint) do
    case logs_in(settings, endpoint) do
      :connect -> []
      :upgrade -> settings.connect |> Secret.reveal() |> credentials(endpoint) |> authorization()
    end
  end

  defp authorization({nil, _passcode}), do: []

  defp authorization({login, passcode}) do
    # What is behind the colon would be read as a part of the passcode.
    if String.contains?(login, ":"), do: raise(ArgumentError, @colon)
    [{"authorization", Http.basic(login, passcode || "")}]
  end

  @doc "The options for the connection to an endpoint. `login` returns headers of the opening handshake."
  @spec network(settings(), Endpoint.t(), (() -> Connection.Http.headers())) :: [term()]
  def network(settings, endpoint, login) do
    opts = Secret.reveal(endpoint.opts)

    case logs_in(settings, endpoint) do
      :connect ->
        opts

      :upgrade ->
        {_name, given} = List.keyfind(opts, :upgrade_headers, 0, {:upgrade_headers, nil})
        [{:upgrade_headers, fn -> with_login(given, login) end} | opts]
    end
  end

  # Runs in the process that connects. An error of it is one of the user's function.
  defp with_login(given, login) do
    with {:ok, headers} <- Connection.Options.upgrade_headers(given) do
      given? =
        Enum.any?(headers, fn {name, _value} -> String.downcase(name) == "authorization" end)

      if given?, do: headers, else: login.() ++ headers
    end
  end

  defp logs_in(%{login_in: :upgrade}, %{websocket: path}) when path != nil, do: :upgrade
  defp logs_in(_settings, _endpoint), do: :connect

  defp credentials(options, endpoint) do
    {login, passcode} = Secret.reveal(endpoint.credentials)
    {login || reveal(options.login), passcode || reveal(options.passcode)}
  end

  defp login_headers({login, passcode}),
    do: header("login", login) ++ header("passcode", passcode)

  defp header(_name, nil), do: []
  defp header(name, value), do: [{name, value}]

  defp reveal(value) when is_binary(value) or value == nil, do: value
  defp reveal(function), do: string!(Schema.call(function))

  # The message does not show it.
  defp string!(value) when is_binary(value), do: value
  defp string!(_other), do: raise(ArgumentError, @no_string)

  @doc "Checks the options of a subscription."
  @spec subscription!([term()]) :: map()
  def subscription!(opts) do
    options = Schema.all!(opts, @subscription ++ @subscribing)
    check_headers!(:subscribe, options.headers)
    check_limits!(options)
  end

  @doc "Checks that the limits of a subscription can be watched."
  @spec check_limits!(map()) :: map()
  def check_limits!(options) do
    if options.max_silence == 0, do: raise(ArgumentError, "option :max_silence: 0 is no time")

    if options.on_silence == :reconnect and options.max_silence == :infinity,
      do: raise(ArgumentError, "option :on_silence: it needs :max_silence")

    options
  end

  @doc false
  def secret?(value), do: Schema.valid?(:string, value) or Schema.callable?(value)

  @doc false
  def urls?([_ | _] = urls), do: not List.improper?(urls)
  def urls?(_other), do: false

  @doc false
  def heart_beat?({sends, wants}), do: Schema.valid?(:time, sends) and Schema.valid?(:time, wants)
  def heart_beat?(_other), do: false

  @doc false
  def backoff?({shortest, longest}),
    do: Schema.valid?(:time, longest) and shortest in 1..longest//1

  def backoff?(_other), do: false

  @doc false
  def spool?(value),
    do: value == :memory or (Schema.valid?(:string, value) and String.valid?(value))

  @doc false
  def versions?([_ | _] = versions), do: Enum.all?(versions, &(&1 in ["1.0", "1.1", "1.2"]))
  def versions?(_other), do: false

  @doc false
  def headers_or_function?(value), do: Schema.callable?(value) or headers?(value)

  @doc false
  def headers?(headers),
    do: Schema.valid?(:list, headers) and Enum.all?(headers, &match?({_name, _value}, &1))
end
