defmodule Barytherium.Certificates do
  @moduledoc """
  Certificates of an authority that only one test uses.
  """

  # The extension subjectAltName (RFC 5280, 4.2.1.6).
  @names {2, 5, 29, 17}
  @key {:rsa, 2048, 65_537}

  # DER's tags, and the first bytes of the identifiers of RSA's algorithms (1.2.840.113549.1.1).
  @bit_string 0x03
  @null 0x05
  @sequence 0x30
  @rsa <<0x06, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1>>

  @doc """
  `%{server: options, client: options, cacerts: certificates}`: TLS options for the server, TLS
  options with which a client of the same authority presents its certificate, and the certificates
  that a client has to trust.

  `names` are the names of the server, as strings or IP addresses. The option `:validity` is a tuple of
  two dates.
  """
  def make(names, opts \\ []) do
    validity = Keyword.take(opts, [:validity])
    server_root = root("server authority")
    client_root = root("client authority")
    peer = [digest: :sha256, key: @key]

    %{server_config: server, client_config: client} =
      :public_key.pkix_test_data(%{
        server_chain: %{
          root: server_root,
          intermediates: [],
          peer: peer ++ [extensions: [names(names)]] ++ validity
        },
        client_chain: %{root: client_root, intermediates: [], peer: peer}
      })

    %{
      server: peer(server, server_root) ++ [cacerts: [client_root.cert]],
      client: peer(client, client_root),
      cacerts: [server_root.cert]
    }
  end

  defp root(name) do
    root = :public_key.pkix_test_root_cert(to_charlist(name), digest: :sha256, key: @key)
    %{root | cert: with_null(root.cert, root.key)}
  end

  defp peer(options, issuer) do
    [cert: with_null(options[:cert], issuer.key), key: options[:key]]
  end

  # The parameters of RSA's algorithms are NULL (RFC 3279, 2.3.1), and rustls takes no other
  # certificate. OTP 29 leaves them out.
  defp with_null(certificate, issuer_key) do
    [{@sequence, certificate}] = fields(certificate)
    [{@sequence, tbs}, {@sequence, algorithm}, _signature] = fields(certificate)
    tbs = field(@sequence, add_null(tbs))
    signature = :public_key.sign(tbs, :sha256, issuer_key)

    field(@sequence, [
      tbs,
      field(@sequence, add_null(algorithm)),
      field(@bit_string, [0, signature])
    ])
  end

  defp add_null(<<@rsa::binary, _algorithm>> = identifier), do: [identifier, <<@null, 0>>]

  defp add_null(content) do
    for {tag, content} <- fields(content) do
      field(tag, if(tag == @sequence, do: add_null(content), else: content))
    end
  end

  # The fields of a DER encoding (X.690): tag, length, content. A length of 128 or more follows the
  # number of its own bytes.
  defp fields(""), do: []

  defp fields(
         <<tag, 1::1, size::7, length::unit(8)-size(size), content::binary-size(length),
           rest::binary>>
       ),
       do: [{tag, content} | fields(rest)]

  defp fields(<<tag, length, content::binary-size(length), rest::binary>>),
    do: [{tag, content} | fields(rest)]

  defp field(tag, content) do
    content = IO.iodata_to_binary(content)
    [<<tag>>, length_of(byte_size(content)), content] |> IO.iodata_to_binary()
  end

  defp length_of(length) when length < 128, do: <<length>>

  defp length_of(length) do
    bytes = :binary.encode_unsigned(length)
    <<1::1, byte_size(bytes)::7, bytes::binary>>
  end

  @doc "Writes the same into PEM files in `directory`. Returns options with their paths."
  def write!(%{server: server, client: client, cacerts: cacerts}, directory) do
    %{
      server: files(server, directory, "server"),
      client: files(client, directory, "client"),
      cacertfile:
        pem(directory, "ca.pem", Enum.map(cacerts, &{:Certificate, &1, :not_encrypted})),
      client_cacertfile:
        pem(
          directory,
          "client_ca.pem",
          Enum.map(server[:cacerts], &{:Certificate, &1, :not_encrypted})
        )
    }
  end

  defp files(options, directory, name) do
    {type, key} = options[:key]

    [
      certfile: pem(directory, "#{name}.pem", [{:Certificate, options[:cert], :not_encrypted}]),
      keyfile: pem(directory, "#{name}_key.pem", [{type, key, :not_encrypted}])
    ]
  end

  defp pem(directory, name, entries) do
    path = Path.join(directory, name)
    File.write!(path, :public_key.pem_encode(entries))
    path
  end

  defp names(names), do: {:Extension, @names, false, Enum.map(names, &name/1)}
  defp name(name) when is_binary(name), do: {:dNSName, to_charlist(name)}
  defp name(address), do: {:iPAddress, address |> Tuple.to_list() |> :binary.list_to_bin()}
end
