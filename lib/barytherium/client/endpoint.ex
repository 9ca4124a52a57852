defmodule Barytherium.Client.Endpoint do
  @moduledoc false
  # A broker that a client can connect to.

  alias Barytherium.Connection.Http
  alias Barytherium.{Network, Schema, Secret}

  @form "stomp://user:pass@host:port/vhost, or stomp+ssl://... for TLS, ws://... and wss://... for a WebSocket"
  @ports %{"stomp" => 61_613, "stomp+ssl" => 61_614, "ws" => 80, "wss" => 443}
  @secure ["stomp+ssl", "wss"]

  # `websocket` is its path, with the query, which may hold a token.
  @enforce_keys [:host, :port, :secure, :websocket, :vhost, :credentials, :opts]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          host: String.t(),
          port: :inet.port_number(),
          secure: boolean(),
          websocket: nil | Secret.t(String.t()),
          vhost: nil | String.t(),
          credentials: Secret.t({nil | String.t(), nil | String.t()}),
          opts: Secret.t([Barytherium.Connection.option()])
        }

  @doc "How a URL has to look."
  @spec form() :: String.t()
  def form, do: @form

  @doc """
  Parses a URL, or `{url, options}` with options of `Barytherium.Network` for this broker only. The text of an
  error shows nothing of the URL but its scheme.
  """
  @spec parse(term()) :: {:ok, t()} | {:error, String.t()}
  def parse({url, opts}) when is_list(opts) do
    with {:ok, endpoint} <- parse(url), do: {:ok, %{endpoint | opts: Secret.new(opts)}}
  end

  def parse(url) when is_binary(url) do
    with {:ok, scheme} <- scheme(url),
         {:ok, %URI{host: host, fragment: nil} = uri}
         when is_binary(host) and host != "" <- URI.new(url),
         websocket = websocket(uri),
         :ok <- authority(url, websocket),
         :ok <- escapes(uri, websocket),
         :ok <- virtual_host(uri, websocket) do
      {:ok,
       %__MODULE__{
         host: host,
         port: uri.port || @ports[scheme],
         secure: scheme in @secure,
         websocket: websocket && Secret.new(websocket),
         vhost: if(websocket, do: nil, else: vhost(uri.path)),
         credentials: Secret.new(credentials(uri.userinfo)),
         opts: Secret.new([])
       }}
    else
      {:wrong, text} -> {:error, text}
      _not_such_a_url -> {:error, reserved(url)}
    end
  end

  def parse(_other), do: {:error, "not a URL: " <> @form}

  defp scheme(url) do
    case String.split(url, "://", parts: 2) do
      [scheme, _rest] when is_map_key(@ports, scheme) ->
        {:ok, scheme}

      [scheme, _rest] ->
        schemes = @ports |> Map.keys() |> Enum.join(", ")
        {:wrong, "there is no scheme #{inspect(scheme)}, but #{schemes}: #{@form}"}

      _none ->
        {:wrong, "not a URL: " <> @form}
    end
  end

  # What may be wrong with a user, a password, a host or a port, where `URI` sees nothing wrong.
  defp authority(url, websocket) do
    # A WebSocket may have anything in its path and query, so a / in the password is not noticed there.
    ends = if websocket, do: ["/", "?"], else: "/"

    [authority | path] =
      url |> String.split("//", parts: 2) |> List.last() |> String.split(ends, parts: 2)

    path = if websocket, do: [], else: path
    ats = length(String.split(authority, "@")) - 1
    no_port? = String.ends_with?(authority, ":")
    # The password has an @, or a / after which the path begins too early.
    early? = Enum.any?(path, &String.contains?(&1, "@")) and (ats == 0 or no_port?)

    cond do
      ats > 1 or early? -> {:wrong, reserved(url)}
      no_port? -> {:wrong, "the port is missing after the colon"}
      true -> :ok
    end
  end

  # `URI.decode/1` leaves a % as it is.
  defp escapes(%URI{userinfo: userinfo, path: path}, websocket) do
    # The server decodes the path of a WebSocket.
    if "#{userinfo} #{unless websocket, do: path}" =~ ~r/%(?![0-9A-Fa-f]{2})/,
      do: {:wrong, "a % that encodes nothing: write %25"},
      else: :ok
  end

  defp websocket(%URI{scheme: scheme} = uri) when scheme in ["ws", "wss"],
    do: (uri.path || "/") <> if(uri.query, do: "?" <> uri.query, else: "")

  defp websocket(_uri), do: nil

  defp virtual_host(_uri, websocket) when websocket != nil, do: :ok
  defp virtual_host(%URI{query: nil, path: path}, nil), do: path(path)

  defp virtual_host(_tools, nil),
    do:
      {:wrong,
       "only URLs of the command-line tools have a query: here the virtual host is the path, stomp://host/vhost"}

  # The path of the command-line tools is a destination, so this is easily mistaken.
  defp path("/" <> name = path) do
    if String.contains?(name, "/"),
      do:
        {:wrong,
         "the path is the virtual host, with %2F for each /. For a destination, did you mean " <>
           "subscribe: #{inspect(path)}?"},
      else: :ok
  end

  defp path(_none), do: :ok

  defp reserved(url) do
    if url =~ ~r{//[^@]*@},
      do:
        "in the user, the password and the virtual host, write %40 for @, %3A for :, %2F for /, %3F for ?, " <>
          "%23 for # and %25 for %: #{@form}",
      else: "not a URL: " <> @form
  end

  defp vhost(path) when path in [nil, "", "/"], do: nil
  defp vhost("/" <> name), do: URI.decode(name)

  defp credentials(nil), do: {nil, nil}

  defp credentials(userinfo) do
    case userinfo |> String.split(":", parts: 2) |> Enum.map(&URI.decode/1) do
      [login, passcode] -> {login, passcode}
      [login] -> {login, nil}
    end
  end

  @doc """
  Completes the endpoint with what applies to all brokers of a client: options of
  `Barytherium.Network`, and options for TLS. Raises `ArgumentError` for those that are invalid.
  """
  @spec complete!(t(), [term()], [term()]) :: t()
  def complete!(%__MODULE__{} = endpoint, common, ssl) do
    own = Secret.reveal(endpoint.opts)
    names = Enum.map(own, &Schema.name/1)
    common = if endpoint.secure, do: common ++ ssl, else: common

    for name <- [:secure, :websocket], name in Enum.map(own ++ common, &Schema.name/1) do
      raise ArgumentError, "option #{inspect(name)}: the scheme of the URL decides: #{@form}"
    end

    not_ours = if endpoint.websocket, do: names, else: [:upgrade_headers | names]
    common = Enum.reject(common, &(Schema.name(&1) in not_ours))

    websocket =
      for %Secret{} = path <- [endpoint.websocket], do: {:websocket, Secret.reveal(path)}

    opts = [{:secure, endpoint.secure}] ++ websocket ++ own ++ common
    Network.Options.check!(opts)
    Barytherium.Connection.check_address!(endpoint.host, endpoint.port)
    %{endpoint | opts: Secret.new(opts)}
  end

  @doc "The endpoint for logs and metadata. It shows no credentials."
  @spec to_string(t()) :: String.t()
  def to_string(%__MODULE__{} = endpoint) do
    "#{scheme_of(endpoint)}://#{Http.authority(endpoint.host, endpoint.port)}"
  end

  defp scheme_of(%{websocket: nil, secure: secure}),
    do: if(secure, do: "stomp+ssl", else: "stomp")

  defp scheme_of(%{secure: secure}), do: if(secure, do: "wss", else: "ws")
end
