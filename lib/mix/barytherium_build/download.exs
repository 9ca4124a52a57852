defmodule Barytherium.Build.Download do
  @moduledoc false
  # Downloads a file over HTTPS with OTP's own client, since Mix projects can depend on no package
  # before they are compiled.

  # A profile of httpc has its own connections and proxy, so other users of httpc in this VM keep theirs.
  @profile :barytherium_build
  @connect_timeout :timer.seconds(30)
  # The longest time without a byte. Slow lines may take as long as they want.
  @idle_timeout :timer.seconds(60)
  # Archives have about 2 MB. The checksum is known only when all is here, so until then this
  # limits what a server can fill the memory with.
  @max_bytes 32 * 1024 * 1024
  @max_redirects 5
  @redirects [301, 302, 303, 307, 308]

  @doc """
  The body of the answer with status 200. Every host on the way has to be an HTTPS server whose
  certificate is valid for its name.
  """
  @spec get(String.t(), %{String.t() => String.t()}) :: {:ok, binary()} | {:error, String.t()}
  def get(url, environment) do
    {:ok, _started} = Application.ensure_all_started(:inets)
    {:ok, _started} = Application.ensure_all_started(:ssl)

    with {:ok, trusted} <- trusted(environment),
         {:ok, proxy_options} <- start_profile(environment) do
      try do
        follow(url, [ssl: tls(trusted)] ++ proxy_options, @max_redirects)
      after
        :inets.stop(:httpc, @profile)
      end
    end
  end

  # httpc would follow a redirect to an unencrypted URL, so it follows none.
  defp follow(url, http_options, redirects) do
    with {:ok, url} <- check_url(url) do
      case request(url, http_options) do
        {:ok, body} ->
          {:ok, body}

        {:redirect, _to} when redirects == 0 ->
          failed(url, "there are too many redirects")

        {:redirect, to} ->
          url |> URI.merge(to) |> to_string() |> follow(http_options, redirects - 1)

        {:error, reason} ->
          failed(url, reason)
      end
    end
  end

  defp check_url(url) do
    case URI.parse(url) do
      %URI{scheme: "https", host: host} when host not in [nil, ""] -> {:ok, url}
      _other -> {:error, "#{shown(url)} is not an https URL, so nothing is downloaded from it."}
    end
  end

  defp failed(url, reason), do: {:error, "#{shown(url)} could not be downloaded: #{reason}."}

  # A user's name and a query may be secrets.
  defp shown(url), do: to_string(%{URI.parse(url) | userinfo: nil, query: nil})

  defp request(url, http_options) do
    http_options = [autoredirect: false, connect_timeout: @connect_timeout] ++ http_options
    options = [sync: false, stream: {:self, :once}, body_format: :binary]
    headers = [{~c"user-agent", ~c"barytherium"}]
    request = {String.to_charlist(url), headers}

    case :httpc.request(:get, request, http_options, options, @profile) do
      {:ok, id} -> await(id)
      {:error, reason} -> {:error, describe(reason)}
    end
  end

  defp await(id) do
    case next(id) do
      {:stream_start, _headers, pid} -> collect(id, pid, [], 0)
      {{{_http, 200, _phrase}, _headers, body}} -> {:ok, body}
      {{{_http, status, _phrase}, headers, _body}} -> other_status(status, headers)
      {{:error, reason}} -> {:error, describe(reason)}
      :timeout -> {:error, describe(:timeout)}
    end
  end

  defp collect(id, _pid, _parts, size) when size > @max_bytes do
    :httpc.cancel_request(id, @profile)
    {:error, "it is larger than #{@max_bytes} bytes"}
  end

  defp collect(id, pid, parts, size) do
    :httpc.stream_next(pid)

    case next(id) do
      {:stream, part} -> collect(id, pid, [parts, part], size + byte_size(part))
      {:stream_end, _headers} -> {:ok, IO.iodata_to_binary(parts)}
      {{:error, reason}} -> {:error, describe(reason)}
      :timeout -> {:error, describe(:timeout)}
    end
  end

  # The next message of httpc without its id.
  defp next(id) do
    receive do
      {:http, message} when elem(message, 0) == id -> Tuple.delete_at(message, 0)
    after
      @idle_timeout ->
        :httpc.cancel_request(id, @profile)
        :timeout
    end
  end

  defp other_status(status, headers) do
    location = List.keyfind(headers, ~c"location", 0)

    if status in @redirects and location != nil do
      {:redirect, location |> elem(1) |> to_string()}
    else
      {:error, "the server answered with status #{status}"}
    end
  end

  defp describe({:failed_connect, details}) do
    case List.last(details) do
      {_family, _options, reason} -> describe(reason)
      _other -> inspect(details)
    end
  end

  defp describe({:tls_alert, {:unknown_ca, _text}}),
    do: "no authority that is trusted here has signed the server's certificate (unknown_ca)"

  defp describe({:tls_alert, {alert, text}}) do
    if to_string(text) =~ "hostname_check_failed" do
      "the server's certificate is for another host (hostname_check_failed)"
    else
      "TLS failed (#{alert})"
    end
  end

  defp describe(reason) when reason in [:timeout, :etimedout], do: "the server does not answer"

  defp describe({:shutdown, :server_closed}),
    do: "the server closed the connection before the end of the file"

  defp describe(:socket_closed_remotely), do: "the server closed the connection"
  defp describe(:invalid_uri), do: "this is not a valid URL"
  defp describe(:nxdomain), do: "the host is not known"
  defp describe(:econnrefused), do: "the server refuses connections"
  defp describe(reason), do: inspect(reason)

  # As for hex and `rustler_precompiled`.
  defp trusted(%{"HEX_CACERTS_PATH" => path}) when path != "" do
    with {:ok, pem} <- File.read(path),
         [_ | _] = found <- for({:Certificate, der, _} <- :public_key.pem_decode(pem), do: der) do
      {:ok, [cacerts: found]}
    else
      [] ->
        {:error, "#{path}, which HEX_CACERTS_PATH names, has no certificate in PEM format."}

      {:error, reason} ->
        {:error,
         "HEX_CACERTS_PATH names #{path}, which cannot be read: #{:file.format_error(reason)}."}
    end
  end

  defp trusted(_environment) do
    {:ok, [cacerts: :public_key.cacerts_get()]}
  rescue
    # It raises if it finds none, and OTP 24 does not have it.
    _error ->
      {:error,
       "This system has no certificates of authorities where Erlang looks for them. Install them " <>
         "(ca-certificates), or set HEX_CACERTS_PATH to a PEM file."}
  end

  defp tls(trusted) do
    [
      verify: :verify_peer,
      depth: 10,
      # The reason is told in a sentence.
      log_level: :none,
      versions: [:"tlsv1.3", :"tlsv1.2"],
      customize_hostname_check: [match_fun: :public_key.pkix_verify_hostname_match_fun(:https)]
    ] ++ trusted
  end

  defp start_profile(environment) do
    with {:ok, settings, http_options} <- proxy(environment) do
      {:ok, _pid} = :inets.start(:httpc, profile: @profile)
      :ok = :httpc.set_options(settings, @profile)
      {:ok, http_options}
    end
  end

  defp proxy(environment) do
    case first_set(environment, ["HTTPS_PROXY", "https_proxy"]) do
      "" -> {:ok, [], []}
      proxy -> proxy |> URI.parse() |> proxy(environment)
    end
  end

  defp proxy(%URI{host: host, port: port, userinfo: user}, environment)
       when is_binary(host) and is_integer(port) do
    settings = [https_proxy: {{String.to_charlist(host), port}, no_proxy(environment)}]
    {:ok, settings, proxy_auth(user)}
  end

  defp proxy(_uri, _environment) do
    {:error, "HTTPS_PROXY is not a URL with a host and a port, such as http://proxy:3128."}
  end

  defp proxy_auth(nil), do: []

  defp proxy_auth(user) do
    [name | password] = String.split(user, ":", parts: 2)

    decoded =
      for part <- [name, Enum.join(password)], do: part |> URI.decode() |> String.to_charlist()

    [proxy_auth: List.to_tuple(decoded)]
  end

  defp first_set(environment, names),
    do: Enum.find_value(names, "", &if(environment[&1] not in [nil, ""], do: environment[&1]))

  # httpc wants `*.example.org` where others write `.example.org`.
  defp no_proxy(environment) do
    list = first_set(environment, ["NO_PROXY", "no_proxy"])

    for host <- String.split(list, ",", trim: true), host = String.trim(host), host != "" do
      host = if String.starts_with?(host, "."), do: "*" <> host, else: host
      String.to_charlist(host)
    end
  end
end
